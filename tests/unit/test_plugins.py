"""Registries and the modules that users add to them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megasr import cli, plugins
from megasr.errors import UsageError
from megasr.plugins import Registry

NAMES: Registry[int] = Registry("number")
NAMES.register("one", 1)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = dict(NAMES._entries)
    yield
    NAMES._entries.clear()
    NAMES._entries.update(before)
    for module in ("own_numbers", "broken_numbers"):
        plugins._imported.discard(module)
        sys.modules.pop(module, None)


def test_an_unknown_name_shows_the_nearest() -> None:
    assert NAMES["one"] == 1
    with pytest.raises(UsageError, match="unknown number 'onee'; did you mean one"):
        NAMES["onee"]
    with pytest.raises(UsageError, match="unknown number 'seven'; known: one; .* needs megasr --import"):
        NAMES["seven"]
    with pytest.raises(UsageError, match="number 'one' is registered twice"):
        NAMES.register("one", 2)


def test_a_module_that_is_named_adds_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from tests.unit.test_plugins import NAMES\nassert 'one' in NAMES\nNAMES.register('two', 2)\n"
    (tmp_path / "own_numbers.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert "two" not in NAMES
    monkeypatch.setenv(plugins.VARIABLE, "own_numbers")
    assert list(NAMES) == ["one", "two"]
    assert NAMES["two"] == 2


def test_a_module_that_cannot_be_imported_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_numbers.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, reason in (
        ("broken_numbers", "No module named 'no_such_package'"),
        ("nowhere", "No module named 'now"),
    ):
        monkeypatch.setenv(plugins.VARIABLE, module)
        for _ in range(2):  # and again, not only the first time
            with pytest.raises(UsageError, match=f"cannot import {module} .*{reason}"):
                NAMES["one"]


def test_the_command_line_names_modules_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from tests.unit.test_plugins import NAMES\nNAMES.register('two', 2)\n"
    (tmp_path / "own_numbers.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setenv(plugins.VARIABLE, "json")
    assert cli.main(["--import", "own_numbers", "study", "list", "nothing"]) == 2
    assert os.environ[plugins.VARIABLE] == "json,own_numbers"  # which the processes of a study inherit
    assert "two" in NAMES
    capsys.readouterr()
    assert cli.main(["--import", "own_numbrs", "study", "list"]) == 2
    assert f"--import own_numbrs: no such module in {tmp_path}" in capsys.readouterr().err


def test_the_path_of_a_file_is_taken_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "parts").mkdir()
    code = "from tests.unit.test_plugins import NAMES\nNAMES.register('two', 2)\n"
    (tmp_path / "parts" / "own_numbers.py").write_text(code)
    (tmp_path / "parts" / "json.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setenv(plugins.VARIABLE, "")
    for path, says in (
        ("parts/nothing.py", f"parts/nothing.py: no such file in {tmp_path}"),
        ("parts/json.py", "json is also .*; rename the file"),
    ):
        assert cli.main(["--import", path, "study", "list"]) == 2
        assert re.search(says, capsys.readouterr().err)
    assert cli.main(["--import", "parts/own_numbers.py", "study", "list", "nothing"]) == 2
    monkeypatch.chdir(tmp_path / "parts")  # where a process of this one may work
    assert os.environ[plugins.VARIABLE] == str(tmp_path / "parts" / "own_numbers.py")
    assert "two" in NAMES
