"""Reference numbers of the recipes: measure them, check one against its record, write the table, draw pictures.

    python -m experiments.reference measure tiny/megasr tiny/controlnet_only --seeds 0 1 2
    python -m experiments.reference check tiny/megasr
    python -m experiments.reference table --write README.md
    python -m experiments.reference pictures tiny/controlnet_only tiny/megasr --write scenes.png

0: done. 1: numbers deviate, or something has changed, is broken or is missing. 2: what was typed cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.reference.check import Comparison, check
from experiments.reference.measure import Workplace, measure
from experiments.reference.records import all_references
from experiments.reference.table import make_table, replace_block
from megasr.cli import Parser
from megasr.errors import MegaSRError, UsageError
from megasr.files import write_whole


def build_parser() -> Parser:
    """The parser of the actions."""
    default = Workplace()
    parser = Parser(
        prog="python -m experiments.reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--recipes", type=Path, default=default.recipes, help="folder of recipes (default: %(default)s)"
    )
    parser.add_argument("--references", type=Path, default=default.references, help="folder of the numbers")
    parser.add_argument(
        "--runs", type=Path, default=default.runs, help="folder for checkpoints and pictures (default: %(default)s)"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="action", parser_class=Parser)
    about = actions.add_parser(
        "measure",
        help="train and measure recipes; seeds that are already recorded are not run again",
        description="Train and measure recipes, one seed after the other, in this process. Every seed is written as "
        "soon as it is finished; a recorded seed of the same recipe, prior, protocol and images is kept. The number of "
        "CPU threads is torch's (set OMP_NUM_THREADS).",
    )
    about.add_argument("names", nargs="+", metavar="RECIPE", help="such as tiny/megasr")
    about.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    about = actions.add_parser(
        "check",
        help="measure one seed again, training included, and compare it with its record",
        description="Measure one seed again, training included, on as many CPU threads as its record. On the same "
        "machine and versions every number must be equal to the last bit; elsewhere it may differ by as much as the "
        "other recorded seeds do (by 2 %% when there are fewer than two). Exit code 1 when it deviates.",
    )
    about.add_argument("name", metavar="RECIPE", help="such as tiny/megasr")
    about.add_argument("--seed", type=int, help="default: the first recorded one")
    about = actions.add_parser("table", help="print the table of all references, or write it into a file")
    about.add_argument("--against", metavar="RECIPE", help="compare with (default: each folder's own)")
    about.add_argument("--write", type=Path, metavar="FILE", help="replace what stands between the marks in this file")
    about = actions.add_parser("pictures", help="draw what measured adapters make of scenes or photographs")
    about.add_argument("names", nargs="+", metavar="RECIPE", help="such as tiny/megasr; measured on this machine")
    about.add_argument("--images", choices=("scenes", "photographs"), default="scenes")
    about.add_argument("--seed", type=int, default=0, help="of the runs (default: %(default)s)")
    about.add_argument("--rows", type=int, default=5, help="number of images (default: %(default)s)")
    about.add_argument("--write", type=Path, required=True, metavar="PNG")
    return parser


def run(argv: Sequence[str], place: Workplace) -> None:
    """Parse and run one action. Errors travel up as exceptions."""
    arguments = build_parser().parse_args(argv)
    place = replace(place, recipes=arguments.recipes, references=arguments.references, runs=arguments.runs)
    if arguments.action == "measure":
        measure(arguments.names, arguments.seeds, place)
    elif arguments.action == "check":
        report(arguments.name, check(arguments.name, arguments.seed, place))
    elif arguments.action == "pictures":
        from experiments.reference.pictures import draw_pictures

        draw_pictures(arguments.names, arguments.images, arguments.seed, arguments.rows, place, arguments.write)
    else:
        write_table(make_table(all_references(place.references), arguments.against), arguments.write)


def write_table(table: str, path: Path | None) -> None:
    """Print the table, or put it between the marks of a file.

    Raises:
        UsageError: the file cannot be read or has no marks.
    """
    if path is None:
        print(table)
        return
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    write_whole(path, replace_block(text, table, str(path)).encode())


def report(name: str, comparison: Comparison) -> None:
    """Print what a check found.

    Raises:
        MegaSRError: the numbers deviate.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "recorded", "re-measured", "difference", "allowed")
    for line in comparison.lines:
        difference = f"{line.measured - line.recorded:+.2g}{' !' if line.deviates else ''}"
        allowed = f"{line.allowed:.2g}" if line.allowed else "equal bits"
        table.add_row(line.metric, f"{line.recorded:.6f}", f"{line.measured:.6f}", difference, allowed)
    Console().print(table)
    where = "the platform of the record" if comparison.same_platform else "another platform than the record's"
    if comparison.deviating:
        raise MegaSRError(f"{name} deviates from its record in {', '.join(comparison.deviating)}, on {where}")
    found = "every number is equal to the last bit" if comparison.same_platform else "within what is allowed"
    print(f"{name} agrees with its record: {found}, on {where}.")


def main(argv: Sequence[str] | None = None, place: Workplace | None = None) -> int:
    """Run a command line and return its exit code; one line on stderr says what went wrong."""
    try:
        run(sys.argv[1:] if argv is None else argv, place or Workplace())
    except UsageError as error:
        return _fail(error, 2)
    except (MegaSRError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt as interrupt:
        return _fail(interrupt, 130)
    return 0


def _fail(error: BaseException, code: int) -> int:
    if os.environ.get("MEGASR_DEBUG") == "1":
        traceback.print_exc()
    print(f"error: {' '.join(str(error).split()) or 'interrupted'}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
