"""One command makes a prior: what it says of the time left, and how it ends when a part fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import make_prior
from experiments.make_prior import Part
from megasr.training import last_checkpoint
from tests.helpers.sources import ROOT

WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"


def _part(folder: Path, name: str, minutes: float, *words: str) -> Part:
    return Part(name, minutes, folder / name, (words or ("writes", str(folder / name)),), folder)


def test_the_rest_is_scaled_by_the_pace_so_far(tmp_path: Path) -> None:
    parts = [_part(tmp_path, "a", 60), _part(tmp_path, "b", 40)]
    assert make_prior.left(parts, 0, 0) == "1.7 hours"
    assert make_prior.left(parts, taken=5, expected=10) == "50 min"
    assert make_prior.left(parts[1:], taken=30, expected=10) == "2.0 hours"


def test_a_part_that_fails_ends_it_and_the_next_call_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "writes.py").write_text(WRITES)
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    parts = [_part(tmp_path, "one", 10), _part(tmp_path, "two", 10, "fails"), _part(tmp_path, "three", 10)]
    with pytest.raises(SystemExit, match=r"two is not finished \(exit code 3\): the same command goes on with it"):
        make_prior.make(parts)
    assert (tmp_path / "one").exists() and not (tmp_path / "three").exists()
    parts[1] = _part(tmp_path, "two", 10)
    capsys.readouterr()
    make_prior.make(parts)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 of 3: two; about 20 min left"
    assert lines[1] == "3 of 3: three; about 1 min left", "the first took less than a minute of its ten"


def test_a_stopped_command_may_save(tmp_path: Path) -> None:
    """As a terminal's Ctrl-C or a scheduler's SIGTERM reaches it while it waits."""
    saves = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path("begun").touch()
time.sleep(60)
"""
    waits = "import sys; from experiments.make_prior import run; sys.exit(run([sys.executable, '-c', sys.argv[1]]))"
    for number in (signal.SIGINT, signal.SIGTERM):
        (folder := tmp_path / number.name).mkdir()
        with subprocess.Popen(
            [sys.executable, "-c", waits, saves], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as process:
            while not (folder / "begun").exists():
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(number)
            assert process.wait(30) == 143
        assert (folder / "saved").exists()


def test_every_part_of_the_world_is_one_that_its_recipe_or_script_makes() -> None:
    parts = make_prior.parts_of("world")
    assert [part.name for part in parts if part.run] == [
        f"world/{name}.yaml" for name in ("vae", "clip", "prior", "extractors", "pgft_extractors", "pgft_clip")
    ]
    for part in parts:
        (words,) = part.commands
        if part.run is None:
            assert words[words.index("--output") + 1] == str(part.made)
            assert (ROOT / f"{words[0].replace('.', '/')}.py").is_file()


def test_the_checkpoint_it_goes_on_from_is_the_one_that_trainings_write() -> None:
    assert make_prior.LAST == last_checkpoint.LAST


def test_an_unknown_prior_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_prior", "large"])
    with pytest.raises(SystemExit, match="2"):
        make_prior.main()
    assert "invalid choice: 'large'" in capsys.readouterr().err
