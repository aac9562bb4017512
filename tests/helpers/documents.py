"""What the project's documents tell people to type: commands and Python, wherever they stand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.helpers.sources import PACKAGES, ROOT

FOLDERS = ("docs", "experiments", *PACKAGES, "tests")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
PROGRAMS = ("megasr", "python", "make", "sbatch", "wandb", "pip")
_START = rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}) (?=\S)"
_LINE = re.compile(rf"^\s*#?\s*(?:Command: )?({_START}.+)$", flags=re.MULTILINE)  # in a comment or a docstring
_ASIDE = re.compile(r"\s{2,}\(.*$")  # what follows a command in a lab note: `COMMAND     (after another one)`
_OTHERWISE = re.compile(rf"\(or: ({_START}[^)]+)\)")


@dataclass(frozen=True)
class Command:
    """One line for the shell.

    Attributes:
        text: without comments.
        document: where it stands, below the root.
        mentioned: in running text, where a command may be named without its arguments.
    """

    text: str
    document: str
    mentioned: bool = False


@cache
def documents() -> tuple[Path, ...]:
    """Every Markdown file of the repository."""
    return (*sorted(ROOT.glob("*.md")), *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md"))))


def _experiments(*endings: str) -> list[Path]:
    return sorted(path for path in (ROOT / "experiments").rglob("*") if path.suffix in endings)


def fenced(kind: str) -> Iterator[tuple[str, str]]:
    """(document, text) of every fenced block of a kind: bash, python, or "" where none is named."""
    for path in documents():
        for match in FENCED.finditer(path.read_text()):
            if match[1] == kind:
                yield str(path.relative_to(ROOT)), match[2]


def inline(path: Path) -> list[str]:
    """What stands between backticks in the running text of a Markdown file."""
    return INLINE.findall(FENCED.sub("", path.read_text()))


@cache
def commands() -> tuple[Command, ...]:
    """All commands of documents, recipes, the Makefile, job scripts and the docstrings of experiments, each once."""
    found: dict[str, Command] = {}
    for command in (*_typed(), *_mentioned()):  # one that is typed somewhere is whole
        found.setdefault(command.text, command)
    return tuple(found.values())


def _typed() -> Iterator[Command]:
    for document, text in fenced("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if (typed := line.partition(" #")[0].strip()) and not typed.startswith("#"):
                yield Command(typed, document)
    for path in _experiments(".yaml", ".sbatch", ".py"):
        text = path.read_text()
        if path.suffix == ".py":
            text = ast.get_docstring(ast.parse(text)) or ""
        for line in [*_LINE.findall(text), *_OTHERWISE.findall(text)]:
            if not (typed := _ASIDE.sub("", line)).endswith(".."):
                yield Command(typed.strip(), str(path.relative_to(ROOT)))
    for line in re.findall(r"^\t@?\$\(BIN\)/(.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE):
        if line.startswith(PROGRAMS) and "$" not in line:
            yield Command(line, "Makefile")


def _mentioned() -> Iterator[Command]:
    """`a x | y` names two commands: a x and a y."""
    recipes = [(path, INLINE.findall(path.read_text())) for path in _experiments(".yaml")]
    for path, spans in [*((path, inline(path)) for path in documents()), *recipes]:
        for span in spans:
            if re.match(_START, span):
                first, *others = span.split(" | ")
                for text in (first, *(f"{first.rpartition(' ')[0]} {other}" for other in others)):
                    yield Command(text, str(path.relative_to(ROOT)), mentioned=True)


def snippets() -> list[tuple[str, str]]:
    """(document, code) of the Python that is to be run as it is."""
    return list(fenced("python"))
