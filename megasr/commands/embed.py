"""`megasr embed`: the text states of a training's prompts, computed once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from megasr.commands.early import join_names
from megasr.errors import MegaSRError, UsageError, printable


def add_parser(commands: Any) -> None:
    """Declare `embed`; with --config, the further options are those of `megasr fit`."""
    text = (
        "Compute the text states of prompts once, or add them to those that a folder has. A training with "
        "model.text_states FOLDER reads them there and does not load the text encoders of its prior. Give a recipe, "
        "a file of prompts, or both."
    )
    parser = commands.add_parser("embed", help="compute the text states of a training once", description=text)
    add = parser.add_argument
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="for the text states; one that has some is added to",
    )
    add(
        "--config", metavar="RECIPE", action="append", default=[],
        help="recipe of `megasr fit`, whose options may follow: every prompt that the training and its evaluation may "
        "ask for; may be repeated",
    )  # fmt: skip
    add("--prompts", metavar="FILE", type=Path, help="text file with a prompt per line")
    add("--prior", help="whose text encoders; default: the recipe's")
    add("--batch-size", metavar="N", type=int, default=16, help="prompts that are encoded at a time (default: 16)")
    add("--device", help="as torch names it; default: cuda where there is one, else cpu")
    parser.set_defaults(run=run, passes_options_on=True)


def run(arguments: argparse.Namespace) -> None:
    """Collect the prompts, embed those that are new, and say what there is.

    Raises:
        UsageError: an option or the recipe cannot be used, or the folder holds something else.
        MegaSRError: the prior or the data are missing or broken, or the folder cannot be written.
    """
    if not arguments.config and (arguments.prompts is None or arguments.prior is None or arguments.rest):
        unknown = f"unrecognized arguments: {' '.join(arguments.rest)}" if arguments.rest else "nothing to embed"
        raise UsageError(f"{unknown}: give --config RECIPE, or --prior PRIOR --prompts FILE (see megasr embed --help)")
    if arguments.batch_size < 1:
        raise UsageError(f"--batch-size is {arguments.batch_size}, must be greater than 0")
    prompts, prior = [] if arguments.prompts is None else read_prompts(arguments.prompts), arguments.prior
    from megasr.commands.evaluate import measuring_progress, usable_device
    from megasr.semantics.text_states import add_text_states

    device = usable_device(arguments.device)
    with measuring_progress() as progress:
        if arguments.config:
            options = [word for path in arguments.config for word in ("--config", path)]
            options += join_names(arguments.rest) + ([] if prior is None else ["--model.prior", prior])
            asked, prior = collect_prompts(options, progress)
            prompts = [*asked, *prompts]
        add_text_states(
            arguments.output, prior, prompts, arguments.batch_size, device, _say, partial(progress, "encoding prompts")
        )
    _say(f"model.text_states: {arguments.output}")


def _say(line: str) -> None:
    print(printable(line), flush=True)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one per line, and the empty one, which every training asks for.

    Raises:
        MegaSRError: it cannot be read.
    """
    try:
        return ["", *path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, ValueError) as error:
        raise MegaSRError(f"cannot read the prompts in {path}: {error}") from error


def collect_prompts(args: list[str], progress: Callable[[str, int, int], None]) -> tuple[list[str], str]:
    """Every prompt that a recipe's training and evaluation may ask for, and its prior.

    Args:
        args: options of `megasr fit`.
        progress: takes the name of a part, what is done of it, and all of it.

    Raises:
        UsageError: the recipe cannot be used, or its tags are not known beforehand.
        MegaSRError: the data cannot be read.
    """
    from data_pipelines.data_module import SRDataModule
    from megasr.commands.lightning_cli import read_data
    from megasr.networks.config import AdapterConfig
    from megasr.system import possible_prompts
    from megasr.training.config import SamplerConfig

    config, data = read_data(args)
    model = config["model"]
    if (tagger := model["tagger"]) is not None and tagger["kind"] in ("clip", "ram"):
        raise UsageError(
            f"model.tagger {tagger['kind']} makes tags of lq, which are not known beforehand: leave it out"
        )
    adapter, sampler = AdapterConfig(**model["adapter"]), SamplerConfig(**model["sampler"])
    tags: list[list[str]] = [[], []]
    if adapter.text:
        if not isinstance(data, SRDataModule):
            raise UsageError(f"the tags of {type(data).__name__} cannot be listed: give them with --prompts FILE")
        parts = ("reading tags of the training", "reading tags of the evaluation")
        tags = [data.list_tags(bool(number), partial(progress, name)) for number, name in enumerate(parts)]
    return possible_prompts(adapter, sampler, *tags), model["prior"]
