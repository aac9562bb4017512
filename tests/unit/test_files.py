"""A file is whole or not there, and a folder has one writer at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from megasr import files
from megasr.errors import MegaSRError
from megasr.files import locked_folder, open_whole, write_whole, write_whole_folder


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


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for name in ("first", "second"):
        with write_whole_folder(folder) as temporary:
            (temporary / name).touch()
        assert [path.name for path in folder.iterdir()] == [name]
    with pytest.raises(ZeroDivisionError), write_whole_folder(folder) as temporary:
        (temporary / "third").touch()
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


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
