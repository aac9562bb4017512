"""`megasr fit | validate | test | pretrain`: Lightning's own command line; `megasr schema`: its keys, for editors."""

from __future__ import annotations

import argparse
import json
from typing import Any

from megasr.commands.early import check_command, join_names
from megasr.commands.schema import config_schema

HELP = {
    "fit": "train an adapter",
    "validate": "take the validation loss of a checkpoint",
    "test": "restore the evaluation images and measure them under a protocol",
    "pretrain": "make a small prior from nothing: its autoencoder, CLIP, and U-Net",
}


def add_parser(commands: Any) -> None:
    """Declare the commands; the options of all but `schema` belong to LightningCLI."""
    for name, text in HELP.items():
        commands.add_parser(name, help=text, add_help=False).set_defaults(run=run, passes_options_on=True)
    text = "print the JSON Schema of a YAML configuration, for completion and checks in editors"
    schema = commands.add_parser("schema", help=text, description=text)
    schema.add_argument("command", nargs="?", choices=(*HELP, "study"), default="fit", help="default: fit")
    schema.set_defaults(run=print_schema, passes_options_on=False)


def run(arguments: argparse.Namespace) -> None:
    """Run one of Lightning's commands.

    Raises:
        UsageError: an option or a key of the configuration is unknown or has a wrong value.
    """
    options = join_names(arguments.rest)
    check_command(arguments.command, options)
    from megasr.commands.lightning_cli import run_lightning, run_pretraining

    if arguments.command == "pretrain":
        run_pretraining(options)
    else:
        run_lightning([arguments.command, *options])


def print_schema(arguments: argparse.Namespace) -> None:
    """Print the schema."""
    print(json.dumps(config_schema(arguments.command), indent=1))
