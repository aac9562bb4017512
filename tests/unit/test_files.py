"""A file is whole or not there, and a folder has one writer at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megasr import files
from megasr.errors import MegaSRError, UsageError
from megasr.files import home_folder, locked_folder, open_whole, write_whole, write_whole_folder


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for content in (b"first", b"second"):
        before = path.read_bytes() if path.exists() else None
        with open_whole(path) as file:
            file.write(content)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == content
    with pytest.raises(ZeroDivisionError), open_whole(path) as file:
        file.write(b"thi")
        raise ZeroDivisionError
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["x" * 255, "漢" * 83 + ".png", "y" * 60], ids=["ASCII", "Chinese", "short"])
def test_every_name_that_a_file_can_have_can_be_written(tmp_path: Path, name: str) -> None:
    with open_whole(tmp_path / name) as file:
        file.write(b"content")
        (part,) = tmp_path.iterdir()
        assert part.name.endswith(files.PART)
    assert (tmp_path / name).read_bytes() == b"content"


def test_a_home_that_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert home_folder() == Path("/somewhere")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # a container's user without a name
    with pytest.raises(UsageError, match="the home folder of this user is not known: set HOME"):
        home_folder()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    (tmp_path / "new" / "folder.old").mkdir(parents=True)  # somebody's
    for name in ("first", "second"):
        with write_whole_folder(folder) as temporary:
            (temporary / name).touch()
        assert [path.name for path in folder.iterdir()] == [name]
    with pytest.raises(ZeroDivisionError), write_whole_folder(folder) as temporary:
        (temporary / "third").touch()
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["folder", "folder.old"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MegaSRError, match=r"cannot write .*file/below: "):
        write_whole(tmp_path / "file" / "below", b"content")
    with pytest.raises(MegaSRError, match=r"cannot use the folder .*file"), locked_folder(tmp_path / "file"):
        pass


def test_a_folder_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LOCK_WAIT_S", 0.0)
    with (
        locked_folder(tmp_path / "set"),
        pytest.raises(MegaSRError, match="another process is writing to .*set"),
        locked_folder(tmp_path / "set"),
    ):
        pass
    with locked_folder(tmp_path / "set"):
        pass
