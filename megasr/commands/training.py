"""`megasr fit | validate | test`: Lightning's own command line over MegaSRModule and the data modules."""

from __future__ import annotations

import argparse
from typing import Any

from megasr.commands.early import check_command, join_names

HELP = {
    "fit": "train an adapter",
    "validate": "take the validation loss of a checkpoint",
    "test": "restore the evaluation images and measure them under a protocol",
}


def add_parser(commands: Any) -> None:
    """Declare the commands; their options belong to LightningCLI."""
    for name, text in HELP.items():
        parser = commands.add_parser(name, help=text, add_help=False)
        parser.set_defaults(run=run, passes_options_on=True)


def run(arguments: argparse.Namespace) -> None:
    """Run `fit`, `validate` or `test`.

    Raises:
        UsageError: an option or a key of the configuration is unknown or has a wrong value.
    """
    options = join_names(arguments.command, arguments.rest)
    check_command(arguments.command, options)
    from megasr.commands.lightning_cli import run_lightning

    run_lightning([arguments.command, *options])
