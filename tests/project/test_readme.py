"""What README says can be typed, opened and imported."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from megasr.cli import build_parser
from tests.helpers.sources import ROOT, sources

README = (ROOT / "README.md").read_text()
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
BLOCKS = [(match[1], match[2]) for match in FENCED.finditer(README)]
LINES = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
INLINE = re.findall(r"`([^`\n]+)`", FENCED.sub("", README))
COMMANDS = [line for line in LINES + INLINE if line.startswith(("megasr ", "make "))]
# What a run writes, or git does not hold.
GENERATED = ("runs/", ".venv/", "photo.png", "sr.png")


def test_readme_shows_the_main_commands() -> None:
    assert {"make study", "make test", "megasr doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("command", sorted({line for line in COMMANDS if line.startswith("make ")}))
def test_make_target_exists(command: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert command.split()[1] in targets


@pytest.mark.parametrize("command", sorted({line for line in COMMANDS if line.startswith("megasr ")}))
def test_megasr_command_is_known_to_the_parser(command: str) -> None:
    argv = shlex.split(command)[1:]
    if "--help" in argv:
        with pytest.raises(SystemExit) as done:
            build_parser().parse_known_args([argument for argument in argv if argument != argv[0]] or argv)
        assert done.value.code == 0
        return
    arguments, rest = build_parser().parse_known_args(argv)
    assert arguments.passes_options_on or not rest


def _paths() -> list[str]:
    words = [word for text in [*LINES, *INLINE] for word in text.split()]
    links = re.findall(r"\]\(([^)#]+)\)", README)
    named = [word for word in words if "/" in word or word.endswith((".md", ".txt", ".cfg", ".yaml"))]
    is_file = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
    wanted = {word for word in [*named, *links] if is_file.fullmatch(word) and not word.startswith(GENERATED)}
    return sorted(word for word in wanted if not word.startswith("http"))


@pytest.mark.parametrize("path", _paths())
def test_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_tree_of_the_code_exists() -> None:
    tree = next(text for kind, text in BLOCKS if kind == "" and text.startswith("megasr/"))
    folder, missing = ROOT, []
    for line in tree.splitlines():
        names = re.findall(r"\b\w+(?:/|\.py\b)", line)
        if not line.startswith(" "):
            folder, names = ROOT / names[0], []
        missing += [str(folder / name) for name in names if not (folder / name).exists()]
        missing += [] if folder.is_dir() else [str(folder)]
    assert not missing


def _symbols() -> list[str]:
    return sorted({word for word in INLINE if re.fullmatch(r"[A-Z][a-z]\w*[A-Z]\w+", word)})


@pytest.mark.parametrize("symbol", _symbols())
def test_symbol_exists(symbol: str) -> None:
    text = "\n".join(path.read_text() for path, _ in sources().values())
    assert re.search(rf"\b{symbol}\b", text)


@pytest.mark.parametrize("block", [text for kind, text in BLOCKS if kind == "python"])
def test_python_compiles_and_its_imports_exist(block: str) -> None:
    compile(block, "README.md", "exec")
    own = r"^from ((?:megasr|data_pipelines|ablations)\S*) import (.+)$"
    for module, names in re.findall(own, block, flags=re.MULTILINE):
        path: Path = sources()[module][0]
        for name in names.split(","):
            child = f"{module}.{name.strip()}"
            assert child in sources() or re.search(rf"\b{name.strip()}\b", path.read_text()), child
