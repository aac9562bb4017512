"""`megasr pretrain`: Lightning's command line over the modules that make a small prior from nothing."""

from __future__ import annotations

import argparse
from typing import Any

from megasr.commands.early import check_command


def add_parser(commands: Any) -> None:
    """Declare the command; its options belong to LightningCLI."""
    parser = commands.add_parser(
        "pretrain", help="make a small prior from nothing: its autoencoder, CLIP, and U-Net", add_help=False
    )
    parser.set_defaults(run=run, passes_options_on=True)


def run(arguments: argparse.Namespace) -> None:
    """Run one of the pretraining recipes (experiments/tiny).

    Raises:
        UsageError: an option or a key of the configuration is unknown or has a wrong value.
    """
    check_command("pretrain", arguments.rest)
    from megasr.commands.lightning_cli import run_pretraining

    run_pretraining(arguments.rest)
