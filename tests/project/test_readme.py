"""What the documents say is there: files, links, symbols, the tree of the code, and documents that the code cites."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest

from tests.helpers.documents import FENCED, FOLDERS, documents, fenced, inline
from tests.helpers.sources import ROOT, sources

# What a run writes, or git does not hold.
GENERATED = ("runs/", ".venv/", "photo.png", "sr.png", "recipe.yaml")
IS_FILE = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
RECIPES = sorted((ROOT / "experiments").rglob("*.yaml"))


def _words(path: Path) -> Iterator[str]:
    for text in [*inline(path), *(text for document, text in fenced("bash") if ROOT / document == path)]:
        yield from (word for line in text.splitlines() for word in line.split("#")[0].split())


def _paths() -> list[tuple[Path, str]]:
    found = set()
    for path in documents():
        links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
        named = [w for w in _words(path) if "/" in w or w.endswith((".md", ".txt", ".cfg", ".yaml"))]
        found |= {(path, word) for word in [*named, *links] if IS_FILE.fullmatch(word)}
    return sorted((path, word) for path, word in found if not word.startswith((*GENERATED, "http")))


@pytest.mark.parametrize(("document", "path"), _paths(), ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_path_exists(document: Path, path: str) -> None:
    """A file's name alone is that of any of the repository's files."""
    near = (ROOT / path).exists() or (document.parent / path).exists()
    assert near or ("/" not in path and any(any((ROOT / folder).rglob(path)) for folder in FOLDERS))


def test_the_tree_of_the_code_exists() -> None:
    tree = next(text for _, text in fenced("") if text.startswith("megasr/"))
    folder, missing = ROOT, []
    for line in tree.splitlines():
        names = re.findall(r"\b\w+(?:/|\.py\b)", line)
        if not line.startswith(" "):
            folder, names = ROOT / names[0], []
        missing += [str(folder / name) for name in names if not (folder / name).exists()]
        missing += [] if folder.is_dir() else [str(folder)]
    assert not missing


def _symbols() -> list[str]:
    spans = [span for path in documents() for span in inline(path)]
    return sorted({word for word in spans if re.fullmatch(r"[A-Z][a-z]\w*[A-Z]\w+", word)})


@pytest.mark.parametrize("symbol", _symbols())
def test_symbol_exists(symbol: str) -> None:
    """In the code, or among the classes of diffusers, of which docs/priors.md names some that nothing here reads."""
    text = "\n".join(path.read_text() for path, _ in sources().values())
    assert re.search(rf"\b{symbol}\b", text) or hasattr(diffusers, symbol)


def _prose(path: Path) -> str:
    """Comments, and docstrings of a Python file."""
    text = path.read_text()
    if path.suffix != ".py":
        return "\n".join(line for line in text.splitlines() if line.startswith("#"))
    comments = [t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, owners))
    return "\n".join([*comments, *(ast.get_docstring(node) or "" for node in nodes)])


def cited(prose: str) -> set[str]:
    """The documents, and the files of this project's own folders, that a text names; not "another's docs/x.csv"."""
    own = "|".join(FOLDERS)
    return set(re.findall(rf"(?<!'s )(?:[\w/-]+\.md\b|\b(?:{own})(?:/[\w-]+)+\.\w+)", prose))


def test_code_and_recipes_cite_documents_that_are_here() -> None:
    here = {path.name for path in documents()}
    absent = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (*CODE, *RECIPES)
        for name in cited(_prose(path))
        if not (ROOT / name).exists() and not ("/" not in name and name in here)
    ]
    assert not absent
    assert cited("as the field does (field.md 5.2), see megasr/prior.py") == {"field.md", "megasr/prior.py"}


def test_blocks_are_closed() -> None:
    for path in documents():
        assert "```" not in FENCED.sub("", path.read_text()), path.name
