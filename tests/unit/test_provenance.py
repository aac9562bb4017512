"""Where numbers come from: the commit, changes to it, versions and the time."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from megasr import provenance as module
from megasr.provenance import git_commit, provenance, versions


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package below a folder without a repository; the module believes that it is there."""
    (tmp_path / "megasr").mkdir()
    (tmp_path / "megasr" / "provenance.py").write_text("")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "megasr" / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path / "megasr"


def _commit() -> str | None:
    return git_commit.__wrapped__()  # not what another test has found


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_commit_of_the_packages_own_checkout_and_whether_it_was_changed(package: Path) -> None:
    assert _commit() is None
    _git(package.parent, "init", "-q")
    _git(package.parent, "add", "megasr")
    _git(package.parent, "commit", "-qm", "first")
    head = _git(package.parent, "rev-parse", "HEAD")[:12]
    assert _commit() == head
    (package / "notes.txt").write_text("git does not know this file")
    assert _commit() == head
    (package / "provenance.py").write_text("# changed")
    assert _commit() == f"{head}+changes"


def test_the_commit_of_another_project_is_not_taken(package: Path) -> None:
    (package.parent / "mine.py").write_text("")
    _git(package.parent, "init", "-q")
    _git(package.parent, "add", "mine.py")
    _git(package.parent, "commit", "-qm", "an environment lies in this repository")
    assert _commit() is None


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_without_git_there_is_no_commit(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert _commit() is None


def test_everything_told_is_kept_beside_commit_device_and_time_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "git_commit", lambda: "0123456789ab")
    about = provenance("cuda:1", weights={"a": "b"})
    assert about.keys() == {"commit", "versions", "machine", "device", "time", "weights"}
    assert (about["commit"], about["device"], about["weights"]) == ("0123456789ab", "cuda:1", {"a": "b"})
    offset = datetime.fromisoformat(about["time"]).utcoffset()
    assert offset is not None
    assert offset.total_seconds() == 0


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGES", ("torch", "no-such-package", "numpy"))
    assert list(versions()) == ["torch", "numpy"]
