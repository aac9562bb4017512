"""`megasr export`: a run's adapter as a folder that MegaSRPipeline.from_pretrained reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_CHECKPOINTS = ("last.ckpt", "adapter.ckpt")  # of `megasr fit`, and of a study's training


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
    from megasr.inference.pipeline import MegaSRPipeline

    inside = [Path(arguments.source) / name for name in _CHECKPOINTS]
    source = next((path for path in inside if path.exists()), arguments.source)
    MegaSRPipeline.from_checkpoint(source, prior=arguments.prior).save_pretrained(
        arguments.output, arguments.include_prior
    )
    print(arguments.output)
