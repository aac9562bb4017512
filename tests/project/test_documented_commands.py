"""Every command of every document is parsed to its end by the parser that it meets, and every Python snippet is run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ablations.declared import declare, is_declared
from ablations.evaluation import find_metric, read_sets
from ablations.plan import default_components
from ablations.studies import get_study
from megasr.cli import build_parser
from megasr.commands.lightning_cli import (
    NothingRun,
    OneLineCLI,
    ParsedCLI,
    PretrainingCLI,
    _call,
    expand_benchmark,
    run_pretraining,
)
from megasr.errors import UsageError
from megasr.evaluation.protocol import get_protocol
from megasr.inference.pipeline import MegaSRPipeline
from megasr.losses.restoration import TERMS
from megasr.networks.config import AdapterConfig
from megasr.training.module import MegaSRModule
from tests.helpers.documents import FENCED, PROGRAMS, Command, commands, documents, fenced, snippets
from tests.helpers.sources import ROOT

OF_MEGASR = [command for command in commands() if command.text.startswith("megasr ")]
OF_PYTHON = [command for command in commands() if re.match(r"(\S+=\S+ )*python ", command.text)]
OF_MAKE = [command for command in commands() if command.text.startswith("make ")]
JOBS = [command for command in commands() if command.text.startswith("sbatch ")]
parser = cache(build_parser)


class ParsedPretraining(NothingRun, PretrainingCLI):
    """`megasr pretrain` that builds nothing."""


class ParsedError(Exception):
    """The parser of a script has accepted its arguments; nothing more is to happen."""


def ids(command: Command) -> str:
    return command.text[:100]


@cache
def fit_cli() -> OneLineCLI:
    """The parser of fit, validate and test: its making takes longer than all that it parses."""
    return _call(ParsedCLI, ["fit", "--data", "SceneDataModule"])


@cache
def pretraining_cli() -> OneLineCLI:
    return run_pretraining(["--config", str(ROOT / "experiments" / "tiny" / "vae.yaml")], ParsedPretraining)


def parse_with(cli: OneLineCLI, args: Sequence[str]) -> None:
    """Parse as the command would, and make the checks that no single class can."""
    if "--help" in args:
        with pytest.raises(SystemExit) as done:
            cli.parser.parse_args(args)
        assert done.value.code == 0
        return
    cli.parse_arguments(cli.parser, list(args))
    cli.before_instantiate_classes()


def parse(argv: Sequence[str]) -> None:
    """Parse what follows `megasr`, as far as the command itself would before it does anything.

    Raises:
        UsageError: the command cannot be used.
    """
    if argv[0] in ("fit", "validate", "test"):
        return parse_with(fit_cli(), expand_benchmark(argv))
    if argv[0] == "pretrain":
        return parse_with(pretraining_cli(), ["fit", *argv[1:]])
    arguments, rest = parser().parse_known_args(argv)
    if argv[0] in ("doctor", "embed") and arguments.config:
        options = [word for path in arguments.config for word in ("--config", path)]
        return parse_with(fit_cli(), ["fit", *options, *rest])
    if rest:
        raise UsageError(f"unrecognized arguments: {' '.join(rest)}")
    if argv[:2] in (["study", "plan"], ["study", "run"], ["study", "report"]):
        path = arguments.config or Path(arguments.name)
        if arguments.config is None and not path.exists():
            return None  # of the reader's own
        recipe = yaml.safe_load(path.read_text())
        if is_declared(recipe["study"]):
            assert declare(recipe["study"], path).ablations
            return None
        own = path.parts[0] == "examples"  # tests/project/test_wheel.py installs it and runs its study
        assert own or get_study(arguments.name).name == recipe["study"]["name"]
    return None


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the root of the repository, with what its commands and snippets expect to find there."""
    folder = tmp_path_factory.mktemp("documents")
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name != "runs":
            (folder / entry.name).symlink_to(entry)
    pixels = torch.rand(24, 16, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    Image.fromarray(pixels.numpy()).save(folder / "photo.png")
    (folder / "runs").mkdir()
    cli = fit_cli()
    cli.parse_arguments(cli.parser, ["fit", "--data", "SceneDataModule", "--model.adapter.guidance", "[canny]"])
    options = cli._subcommand_parsers["fit"]
    options.save(cli.config.fit, str(folder / "runs" / "config.yaml"), skip_none=False)  # as a run does
    adapter = AdapterConfig(guidance=("canny", "superpixel"), saft_width=8, text=False)
    MegaSRPipeline(MegaSRModule(adapter=adapter).eval()).save_pretrained(folder / "runs" / "adapter")
    return folder


@pytest.fixture(autouse=True)
def _inside(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


def test_there_are_commands_of_every_kind() -> None:
    texts = {command.text for command in commands()}
    assert {"make study", "make test", "megasr doctor"} <= texts
    documents = {command.document for command in commands()}
    assert {"README.md", "Makefile", "experiments/tiny/vae.yaml", "docs/scaling.md"} <= documents
    assert len(OF_MEGASR) > 40 and len(OF_PYTHON) > 20 and JOBS and snippets()


def test_every_line_for_the_shell_is_a_command_that_is_tested() -> None:
    lines = [command.text for command in commands() if not command.mentioned]
    assert not [line for line in lines if not re.match(rf"(\S+=\S+ )*({'|'.join(PROGRAMS)}) ", line)]


@pytest.mark.parametrize("command", OF_MAKE, ids=ids)
def test_make_target_exists(command: Command) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert command.text.split()[1] in targets


@pytest.mark.parametrize("command", OF_MEGASR, ids=ids)
def test_megasr_command_is_parsed_to_its_end(command: Command) -> None:
    argv = shlex.split(command.text)[1:]
    try:
        if command.mentioned and argv in (["fit"], ["validate"], ["test"], ["pretrain"]):
            parser().parse_known_args(argv)
        else:
            parse(argv)
    except UsageError as error:  # running text may end before what the command, or its last option, needs
        assert command.mentioned and re.search(r"arguments are required|expected one argument", str(error)), error


@pytest.mark.parametrize("command", JOBS, ids=ids)
def test_job_is_a_script_and_options_of_fit(command: Command) -> None:
    words = shlex.split(command.text)
    place = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
    assert Path(words[place]).is_file()
    folder, *options = words[place + 1 :]
    parse(["fit", *options, "--trainer.default_root_dir", folder])


def against(text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the script of `python -m MODULE ARGUMENTS` has to say against its arguments; empty when it takes them."""
    _, dash_m, name, *argv = (word for word in shlex.split(text) if not re.match(r"[A-Z_]+=", word))
    assert dash_m == "-m", "a command that no module answers"
    found = importlib.util.find_spec(name)
    if found is None or not name.startswith("experiments"):
        return "" if found else f"there is no module {name}"
    real = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, args: object = None, namespace: object = None) -> None:
        real(self, args, namespace)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [name, *argv])
    try:
        importlib.import_module(name if found.submodule_search_locations is None else f"{name}.__main__").main()
    except ParsedError:
        return ""
    except SystemExit as done:
        return "" if done.code == 0 else capsys.readouterr().err
    return capsys.readouterr().err or "it parses nothing"


@pytest.mark.parametrize("command", OF_PYTHON, ids=ids)
def test_python_command_is_parsed_by_its_script(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = against(command.text, monkeypatch, capsys)
    assert not message or (command.mentioned and "arguments are required" in message), message


@pytest.mark.parametrize(
    "line",
    [
        "megasr fit --data SceneDataModule --trainer.max_stepz 3",
        "megasr test --config runs/config.yaml --ckpt_path a.ckpt --model.adaptor.text true",
        "megasr pretrain --config experiments/tiny/vae.yaml --trainer.max_stepz 3",
        "megasr doctor --config experiments/tiny/megasr.yaml --gpu-gb 24",
        "megasr study run semantics --config experiments/tiny/semantics.yaml --output a --launch slurm",
        "megasr upscale photo.png sr.png --checkpoint tiny --tyle 3",
        "python -m experiments.benchmarks.scaling --outptu scaling.json",
        "python -m experiments.benchmarks.scalings",
    ],
)
def test_a_misspelt_command_is_seen(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if line.startswith("python"):
        assert against(line, monkeypatch, capsys)
    else:
        with pytest.raises(UsageError):
            parse(shlex.split(line)[1:])


@pytest.mark.parametrize("number", range(len(snippets())), ids=lambda number: snippets()[number][0])
def test_snippet_runs(number: int, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, code = snippets()[number]
    monkeypatch.setattr(TERMS, "_entries", dict(TERMS._entries))  # what a snippet registers is its own
    exec(compile(code, f"{document}, Python", "exec"), {"__name__": "__main__"})


RECIPES = [
    (document, text) for document, text in fenced("yaml") if "--8<--" not in text
]  # files have tests of their own


@pytest.mark.parametrize(("document", "text"), RECIPES, ids=lambda value: value[:20])
def test_a_recipe_in_a_document_is_what_fit_takes(document: str, text: str, workplace: Path) -> None:
    if (study := yaml.safe_load(text).get("study")) is not None:  # which fit does not read
        sets = read_sets(study["evaluation"], get_protocol(study["protocol"]), default_components(), workplace)
        assert find_metric(sets, study["primary_metric"]) != find_metric(sets, study["holdout_metric"])
        return
    (workplace / "block.yaml").write_text(text)
    parse_with(fit_cli(), ["fit", "--data", "SceneDataModule", "--config", str(workplace / "block.yaml")])


def test_no_block_is_of_another_kind() -> None:
    """Which would be read by none of these tests."""
    kinds = {match[1] for path in documents() for match in FENCED.finditer(path.read_text())}
    assert kinds <= {"bash", "python", "py", "yaml", ""}
