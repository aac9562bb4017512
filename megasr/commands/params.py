"""`megasr params`: trained and frozen parameters of an adapter, part by part, and its number of sites."""

from __future__ import annotations

import argparse
from typing import Any

from megasr.commands.early import guidance_names
from megasr.errors import unknown_name
from megasr.names import split_names


def add_parser(commands: Any) -> None:
    """Declare `params`."""
    parser = commands.add_parser("params", help="count trained and frozen parameters", description=__doc__)
    parser.add_argument(
        "--prior", default="sd21-base", help="`sd21-base` (needs no weights), `tiny`, a folder, a hub id"
    )
    parser.add_argument("--guidance", nargs="*", default=[], metavar="TYPE", help="guidance types that are fused")
    parser.add_argument("--image", action="store_true", help="with CSM's visual branch")
    parser.add_argument("--rca", action="store_true", help="with v1's representation cross-attention")
    parser.set_defaults(run=run, passes_options_on=False)


def run(arguments: argparse.Namespace) -> None:
    """Print one line per part.

    Raises:
        UsageError: a guidance type is unknown.
        MegaSRError: the prior is not on this machine.
    """
    guidance = split_names(",".join(arguments.guidance))
    for name in guidance:
        if name not in guidance_names():
            raise unknown_name("guidance type", name, guidance_names())
    from megasr.networks.config import AdapterConfig
    from megasr.networks.parameters import build_sd21_on_meta, parameter_table
    from megasr.prior import load_prior

    prior = build_sd21_on_meta() if arguments.prior == "sd21-base" else load_prior(arguments.prior)
    config = AdapterConfig(guidance=guidance, image=arguments.image, rca=arguments.rca)
    print(f"{'part':<18} {'sites':>5} {'trained':>15} {'frozen':>15}")
    for row in parameter_table(prior, config):
        print(f"{row.part:<18} {row.sites or '':>5} {row.trained:>15,} {row.frozen:>15,}")
