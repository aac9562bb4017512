"""`megasr weights list | fetch | verify`: the external weights: which there are, and putting them on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.console import progress_bars
from megasr.errors import MegaSRError

if TYPE_CHECKING:
    from megasr.weights import Weight

_WHERE = (
    "Weights lie in $MEGASR_WEIGHTS/NAME (default: ~/.cache/megasr/weights/NAME); what is not there is looked for in "
    "the Hugging Face cache, and the weights of metrics in torch's."
)


def add_parser(commands: Any) -> None:
    """Declare `weights` and its actions."""
    parser = commands.add_parser("weights", help="list, download and check external weights", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    show = actions.add_parser("list", help="say what every weight is for, its licence, and whether it is here")
    fetch = actions.add_parser(
        "fetch", help="download weights; run it again after an interruption, it goes on", description=_WHERE
    )
    fetch.add_argument("names", metavar="NAME", nargs="+", help="of `megasr weights list`")
    fetch.add_argument("--to", metavar="DIR", type=Path, help="another folder for weights, as for a machine offline")
    verify = actions.add_parser("verify", help="compare the files that are here with the published sha256")
    verify.add_argument("names", metavar="NAME", nargs="*", help="(default: all that are here)")
    for action, run in ((show, run_list), (fetch, run_fetch), (verify, run_verify)):
        action.set_defaults(run=run, passes_options_on=False)


def run_list(arguments: argparse.Namespace) -> None:
    """Print one line per weight: those of models, then those of metrics."""
    from megasr.weights import MANIFEST

    rows = [
        ("name", "here", "size", "licence", "purpose"),
        *(
            (weight.name, state_of(weight), size_of(weight), licence_of(weight), weight.purpose)
            for weight in sorted(MANIFEST.values(), key=lambda weight: bool(weight.place))
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for *cells, purpose in rows:
        print("  ".join([f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)] + [purpose]))
    print(f"\nnc: the licence forbids commercial use. {_WHERE}")


def state_of(weight: Weight) -> str:
    """here, missing, or damaged when a file has another size than the published one."""
    from megasr.weights import find_local

    try:
        return "missing" if find_local(weight.name) is None else "here"
    except MegaSRError:
        return "damaged"


def size_of(weight: Weight) -> str:
    """Size of all files of a weight, for people; ~ when it is a round figure, ? when none is known."""
    sizes = [file.size for file in weight.files]
    known = sum(size for size in sizes if size)
    total = weight.about or known
    if not total:
        return "?"
    about = "" if sizes and all(sizes) else "~"
    return f"{about}{total / 1e9:.1f} GB" if total >= 1e9 else f"{about}{total / 1e6:.0f} MB"


def licence_of(weight: Weight) -> str:
    """The licence, with `nc` in front of a non-commercial one."""
    return f"nc {weight.licence}" if weight.non_commercial else weight.licence


def run_fetch(arguments: argparse.Namespace) -> None:
    """Download weights, and say of each where it is and under which licence.

    Raises:
        UsageError: there is no such weight.
        MegaSRError: this machine is offline, no mirror gives a file, or the disk fails.
    """
    from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn

    from megasr.weights.download import fetch
    from megasr.weights.local import FOLDER_VARIABLE, named_weights

    for weight in named_weights(arguments.names):  # all names are known before the first gigabyte
        with progress_bars(BarColumn(), DownloadColumn(), TransferSpeedColumn()) as report:
            path = fetch(weight.name, arguments.to, report)
        print(f"{path}: {weight.name}, licence: {weight.terms}")
    if arguments.to is not None:
        print(f"To use it from there: {FOLDER_VARIABLE}={arguments.to}")


def run_verify(arguments: argparse.Namespace) -> None:
    """Print one line per file: ok, wrong, unknown (no sha256 is published) or missing.

    Raises:
        UsageError: there is no such weight.
        MegaSRError: a file is wrong, or lacks.
    """
    from megasr.weights.local import named_weights, verify

    weights = named_weights(arguments.names)
    if not weights:
        print("no weight is on this machine")
    bad = 0
    for weight in weights:
        for finding in verify(weight):
            print(f"{finding.state:<7}  {finding.weight}  {finding.detail}")
            bad += finding.state in ("wrong", "missing")
    if bad:
        raise MegaSRError(f"{bad} files of weights are wrong or missing; `megasr weights fetch NAME` replaces them")
