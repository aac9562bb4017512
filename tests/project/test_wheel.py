"""What is installed from a wheel, without this repository: every file of the packages; commands run anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.sources import PACKAGES, ROOT

_BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
_USE = """
import sys
from pathlib import Path
import megasr
from megasr.cli import main
from PIL import Image
assert str(Path(megasr.__file__).parents[1]) == sys.argv[1], megasr.__file__
Image.new("RGB", (9, 7), "olive").save("photo.png")
codes = main(["doctor"]), main(["upscale", "photo.png", "sr.png", "--checkpoint", "tiny", "--steps", "1"])
assert codes == (0, 0), codes
assert Image.open("sr.png").size == (36, 28)
"""


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    command = ["git", "ls-files", "-z", "--", *PACKAGES]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("which files belong to the packages is known to git, and this is no checkout")
    return {name for name in listed.split("\0") if name}


@pytest.fixture(scope="module")
def wheel(tracked: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves folders behind where it builds."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in sorted(tracked | {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"}):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    done = subprocess.run([sys.executable, "-c", _BUILD, built], cwd=copy, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = built.iterdir()
    return found


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(tracked: set[str], wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == tracked


def test_commands_run_from_the_wheel_in_an_empty_folder_without_a_home(wheel: Path, tmp_path: Path) -> None:
    """What is said needs nothing of the repository, and nothing is said of the home folder, which cannot be made."""
    installed, work = tmp_path / "installed", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(installed)
    work.mkdir()
    (tmp_path / "file").touch()
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "HOME": str(tmp_path / "file" / "home")}
    done = subprocess.run(
        [sys.executable, "-c", _USE, installed], cwd=work, env=environment, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "home" not in done.stderr
    assert sorted(path.name for path in work.iterdir()) == ["photo.png", "sr.png"]
