"""What is installed from a wheel, without this repository: every file of the packages; commands run anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

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

_OWN = """
import sys
from megasr.cli import main
recipe = sys.argv[1]
assert main(["params", "--guidance", "gradient"]) == 0
assert main(["study", "list", "gradient"]) == 0
assert main(["study", "run", "gradient", "--config", recipe, "--output", "runs", "--seeds", "0", "--steps", "1"]) == 0
"""


def _build(source: Path, built: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, built], cwd=source, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    (found,) = built.iterdir()
    return found


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
    return _build(copy, built)


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


def test_an_installed_package_of_ones_own_adds_a_guidance_type_and_a_study(wheel: Path, tmp_path: Path) -> None:
    """examples/own_parts, found by its entry point alone."""
    own, built, installed, work = (tmp_path / name for name in ("own", "built", "installed", "work"))
    shutil.copytree(ROOT / "examples" / "own_parts", own)
    built.mkdir()
    work.mkdir()
    recipe = yaml.safe_load((own / "gradient.yaml").read_text())
    recipe["data"]["init_args"] |= {"pool": 2, "batch_size": 1, "train_samples": 2, "eval_samples": 2}
    (own / "small.yaml").write_text(yaml.safe_dump(recipe))
    for archive in (wheel, _build(own, built)):
        zipfile.ZipFile(archive).extractall(installed)
    environment = os.environ | {"PYTHONPATH": str(installed), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-c", _OWN, str(own / "small.yaml")]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert "gradient" in (work / "runs" / "index.html").read_text()
