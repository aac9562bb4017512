"""`megasr export`: a run's adapter as a folder that MegaSRPipeline.from_pretrained reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megasr.training.folders import find_checkpoint


def add_parser(commands: Any) -> None:
    """Declare `export`."""
    parser = commands.add_parser(
        "export", help="make a folder of a run's adapter, to use it or share it", description=__doc__
    )
    parser.add_argument("source", metavar="RUN", help="a run's folder, a checkpoint, or tiny: the shipped adapter")
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder; one that was exported before is replaced")
    parser.add_argument("--prior", help="`tiny`, `sd21-base`, a diffusers folder or a hub id; default: the training's")
    parser.add_argument(
        "--include-prior", action="store_true", help="copy the prior as well, so that nothing else is needed"
    )
    parser.set_defaults(run=run, passes_options_on=False)


def run(arguments: argparse.Namespace) -> None:
    """Write the folder, with the averaged weights when the run has them.

    Raises:
        UsageError: the folder exists and holds something else, or the adapter is a control that needs hq.
        MegaSRError: the checkpoint or the prior is missing, or the folder cannot be written.
    """
    find_checkpoint(arguments.source)
    from megasr.inference.pipeline import MegaSRPipeline

    source = _find_checkpoint(Path(arguments.source)) or arguments.source
    MegaSRPipeline.from_checkpoint(source, prior=arguments.prior).save_pretrained(
        arguments.output, arguments.include_prior
    )
    print(arguments.output)


def _find_checkpoint(folder: Path) -> Path | None:
    """That of a run of `megasr fit`, whole, or of a study's training; None when the folder has neither."""
    from ablations.train import CHECKPOINT
    from megasr.training.last_checkpoint import LAST, PREVIOUS, find_last

    if any((folder / name).exists() for name in (LAST, PREVIOUS)):
        return find_last(folder)
    return folder / CHECKPOINT if (folder / CHECKPOINT).exists() else None
