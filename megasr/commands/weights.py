"""`megasr weights list | fetch | verify`: which external weights there are, and putting them on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    show = actions.add_parser("list", help="print purpose, licence and size of every weight, and whether it is here")
    fetch = actions.add_parser("fetch", help="download weights; again after an interruption", description=_WHERE)
    fetch.add_argument("names", metavar="NAME", nargs="+", help="of `megasr weights list`")
    fetch.add_argument("--to", metavar="DIR", type=Path, help="another folder for weights, as for a machine offline")
    verify = actions.add_parser("verify", help="compare the files that are here with the published sha256")
    verify.add_argument("names", metavar="NAME", nargs="*", help="(default: all that are here)")
    for action, run in ((show, run_list), (fetch, run_fetch), (verify, run_verify)):
        action.set_defaults(run=run, passes_options_on=False)


def run_list(arguments: argparse.Namespace) -> None:
    """Print one line per weight: those of models, then those of metrics."""
    from megasr.weights import MANIFEST

    rows = [("name", "here", "size", "licence", "purpose")]
    for weight in sorted(MANIFEST.values(), key=lambda weight: bool(weight.place)):
        licence = f"nc {weight.licence}" if weight.non_commercial else weight.licence
        rows.append((weight.name, _state(weight), _size(weight), licence, weight.purpose))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for *cells, purpose in rows:
        print("  ".join([f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)] + [purpose]))
    print(f"\nnc: the licence forbids commercial use. {_WHERE}")


def _state(weight: Weight) -> str:
    """`here`, `missing`, or `damaged` when a file has another size than the published one."""
    from megasr.weights import find_local

    try:
        return "missing" if find_local(weight.name) is None else "here"
    except MegaSRError:
        return "damaged"


def _size(weight: Weight) -> str:
    """Size of all files, for people: `29 MB`, `~5.2 GB` for a round figure, `?` when not known."""
    sizes = [file.size for file in weight.files]
    total = weight.about or sum(size or 0 for size in sizes)
    text = f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.0f} MB"
    return f"{'' if all(sizes) else '~'}{text}" if total else "?"


def run_fetch(arguments: argparse.Namespace) -> None:
    """Download weights, and print where each is and under which licence.

    Raises:
        UsageError: there is no such weight.
        MegaSRError: this machine is offline, no mirror gives a file, or the disk fails.
    """
    from megasr.weights.local import FOLDER_VARIABLE, fetch, named_weights

    for weight in named_weights(arguments.names):  # all names are known before the first gigabyte
        print(f"{fetch(weight.name, arguments.to)}: {weight.name}, licence: {weight.terms}", flush=True)
    if arguments.to is not None:
        print(f"To use it from there: {FOLDER_VARIABLE}={arguments.to}")


def run_verify(arguments: argparse.Namespace) -> None:
    """Print one line per file: ok, wrong, unknown (no sha256 is published) or missing.

    Raises:
        UsageError: there is no such weight.
        MegaSRError: a file is wrong or missing.
    """
    from megasr.weights.local import named_weights, verify

    weights = named_weights(arguments.names)
    if not weights:
        print("no weight is on this machine")
    bad = 0
    for weight in weights:
        for state, detail in verify(weight):
            print(f"{state:<7}  {weight.name}  {detail}")
            bad += state in ("wrong", "missing")
    if bad:
        raise MegaSRError(f"{bad} files of weights are wrong or missing; `megasr weights fetch NAME` replaces them")
