"""Options, evaluator and progress bar of the commands that measure images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from megasr.console import progress_bars
from megasr.errors import UsageError, first_line
from megasr.names import split_names

if TYPE_CHECKING:
    from megasr.evaluation.evaluator import Evaluator
    from megasr.evaluation.metrics import Missing

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


def add_measuring_options(parser: argparse.ArgumentParser, *, missing: Missing) -> None:
    """Declare the options; `missing` is the default of --missing."""
    parser.add_argument("--metrics", metavar="A,B", help="which metrics of the protocol (default: all)")
    parser.add_argument("--weights-dir", metavar="DIR", type=Path, help="where weights of metrics are looked for first")
    parser.add_argument(
        "--missing",
        choices=("skip", "error"),
        help=f"what becomes of a metric without its weights (default: {missing})",
    )
    parser.add_argument("--strip", metavar="SUFFIX", nargs="+", default=[], help="endings that are no part of a name")
    parser.add_argument("--device", help="as torch names it; default: cuda where there is one, else cpu")


def check_metrics(protocol: str, metrics: str | None) -> list[str] | None:
    """The names in --metrics; None for all of the protocol.

    Raises:
        UsageError: there is no such protocol, or it has no such metric.
    """
    from megasr.evaluation.protocol import get_protocol

    chosen, names = get_protocol(protocol), None if metrics is None else list(split_names(metrics))
    for name in names or ():
        chosen.metric(name)
    return names


def make_evaluator(arguments: argparse.Namespace, protocol: str, *, missing: Missing) -> Evaluator:
    """The evaluator of the options; `missing` is the default of --missing.

    Raises:
        UsageError, MegaSRError: as Evaluator does, or the device cannot be used.
    """
    from megasr.evaluation.evaluator import Evaluator
    from megasr.evaluation.protocol import get_protocol

    return Evaluator(
        get_protocol(protocol),
        usable_device(arguments.device),
        metrics=check_metrics(protocol, arguments.metrics),
        weights_dir=arguments.weights_dir,
        missing=arguments.missing or missing,
        has_hq=arguments.hq is not None,
    )


def usable_device(name: str | None) -> str:
    """The device of an option; None is cuda where there is one, else cpu.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UsageError(f"--device {name} cannot be used: {first_line(error)}") from error
    return name


@contextmanager
def measuring_progress() -> Iterator[Progress]:
    """The progress of every stage on stderr: done of all, time left."""
    from rich.progress import BarColumn, MofNCompleteColumn

    with progress_bars(BarColumn(), MofNCompleteColumn()) as progress:
        yield progress
