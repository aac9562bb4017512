"""Registries that a user's own package adds to, without an edit here.

A package names its module under the entry point group `megasr`; a module that is not installed is named by
`megasr --import my_module ...`, or by the path of its .py file, or in MEGASR_IMPORT, which the processes of a study
inherit. Either is imported once, before a registry answers.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

from megasr.errors import UsageError, split_names, unknown_name

OWN = ("megasr", "data_pipelines", "ablations")  # the project's packages
GROUP, VARIABLE = "megasr", "MEGASR_IMPORT"
Entry = TypeVar("Entry")
_imported: set[str] = set()


class Registry(Mapping[str, Entry]):
    """Entries by name, in the order of registration, those of users' packages last.

    Args:
        kind: what an entry is, for messages: "guidance type".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._modules: dict[str, str | None] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Add an entry.

        Raises:
            UsageError: the name is taken.
        """
        if name in self._entries:
            raise UsageError(f"{self.kind} {name!r} is registered twice; give the second one a name of its own")
        self._entries[name], self._modules[name] = entry, _registering_module()
        return entry

    def module_of(self, name: str) -> str | None:
        """The user's module that registered an entry; None for one of this project's, and for a script's."""
        return self._modules.get(name)

    def __getitem__(self, name: str) -> Entry:
        """The entry of this name.

        Raises:
            UsageError: there is none; shows the nearest names.
        """
        if name not in self:
            raise unknown_entry(self.kind, name, self)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        import_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        import_plugins()
        return iter(self._entries)

    def __len__(self) -> int:
        import_plugins()
        return len(self._entries)


def _registering_module() -> str | None:
    """The module whose code is registering something, a user's, else None."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OWN:
        frame = frame.f_back
    name: str = frame.f_globals.get("__name__", "")
    return None if name.partition(".")[0] in (*OWN, "importlib", "__main__") else name


def unknown_entry(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Say that a name is not registered; where none is near, also how a module of the user's is named."""
    error = unknown_name(kind, name, known)
    hint = "" if "did you mean" in str(error) else "; one of a module of yours needs megasr --import MODULE"
    return UsageError(f"{error}{hint}")


def import_plugins() -> None:
    """Import the modules of installed packages' entry points, and those that MEGASR_IMPORT names (commas between).

    Raises:
        UsageError: one cannot be imported.
    """
    for module, source in plugin_modules().items():
        if module in _imported:
            continue
        _imported.add(module)  # first: the module asks the registries itself
        try:
            importlib.import_module(module)
        except Exception as error:
            _imported.discard(module)
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(f"cannot import {module} ({source}): {reason}; mend it or leave it out") from error


def plugin_modules() -> dict[str, str]:
    """Module -> what names it; not imported."""
    modules = {entry.value: f"entry point {entry.name}" for entry in _entry_points()}
    return modules | {module_name(given): "--import" for given in split_names(os.environ.get(VARIABLE, ""))}


def module_name(given: str) -> str:
    """The module's own name; where the path of a .py file is given, its folder becomes importable.

    Raises:
        UsageError: there is no such file, or its name is that of another module.
    """
    if not given.endswith(".py"):
        return given
    path = Path(given).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"--import {given}: no such file" + ("" if Path(given).is_absolute() else f" in {Path.cwd()}"))
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    if spec is None or Path(spec.origin or "").resolve() != path:
        taken = f"{path.stem} is also {spec.origin}" if spec else f"{path.stem} cannot be the name of a module"
        raise UsageError(f"--import {given}: {taken}; rename the file")
    return path.stem


def use_working_directory() -> None:
    """Let modules in the working directory be imported, those that are installed first."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


@functools.cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))
