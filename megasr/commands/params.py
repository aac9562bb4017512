"""`megasr params`: how many parameters an adapter trains on a prior, part by part."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Declare `params`."""
    parser = commands.add_parser("params", help="count trained and frozen parameters", description=__doc__)
    parser.add_argument("--prior", default="tiny", help="`tiny`, `sd21-base`, a diffusers folder or a hub id")
    parser.add_argument("--guidance", nargs="*", default=[], metavar="TYPE", help="guidance types that are fused")
    parser.add_argument("--image", action="store_true", help="with CSM's visual branch")
    parser.set_defaults(run=run, passes_options_on=False)


def run(arguments: argparse.Namespace) -> None:
    """Print one line per part: the frozen prior's, then the adapter's.

    Raises:
        UsageError: a guidance type is unknown.
        MegaSRError: the prior is not on this machine.
    """
    from megasr.networks.config import AdapterConfig
    from megasr.networks.network import MegaSRNetwork
    from megasr.prior import PARTS, load_prior

    prior = load_prior(arguments.prior)
    frozen = {part: _size(getattr(prior, part)) for part in PARTS if part != "scheduler"}
    network = MegaSRNetwork(prior, AdapterConfig(guidance=tuple(arguments.guidance), image=arguments.image))
    trained: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            part = _part(name.split("."))
            trained[part] = trained.get(part, 0) + parameter.numel()
    for title, parts in (("frozen", frozen), ("trained", trained)):
        for part, count in parts.items():
            print(f"{title:<8} {part:<32} {count:>14,}")
        print(f"{title:<8} {'all':<32} {sum(parts.values()):>14,}")


def _part(words: list[str]) -> str:
    """The box of the figure that a parameter belongs to: its model, and the module within."""
    inner = next((word for word in words if word in ("csm", "msfm", "rca")), None)
    if "controlnet_cond_embedding" in words:
        inner = "lq_encoder"
    return f"{words[0]}.{inner}" if inner else words[0]


def _size(part: Any) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
