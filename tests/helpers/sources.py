"""The project's own Python files, parsed once for the tests of the project itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("megasr", "data_pipelines", "ablations")


@cache
def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Module name -> (file, syntax tree), of every package that is installed."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = (path, ast.parse(path.read_text(), str(path)))
    return found


def imports(name: str, at_import_time: bool = False) -> Iterator[tuple[str, int]]:
    """(imported module, line) of a module. `from a import b` counts as `a.b` where that is a module.

    Args:
        name: the importing module.
        at_import_time: leave out what functions and `if TYPE_CHECKING` blocks import.
    """
    known = sources()
    tree = known[name][1]
    for node in _import_time_nodes(tree) if at_import_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                child = f"{node.module}.{alias.name}"
                yield (child if child in known else str(node.module), node.lineno)


def _import_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield from _import_time_nodes(child)
