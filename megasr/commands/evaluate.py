"""`megasr evaluate SR_DIR --hq HQ_DIR --protocol NAME`: take the numbers of restored images, and compare them.

Results are written as JSON (rows, means, intervals, where they come from), CSV (rows), Markdown or LaTeX (a table),
by the ending of the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.commands.measuring import add_measuring_options, make_evaluator, measuring_progress
from megasr.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from megasr.evaluation.result import Evaluation

_ENDINGS = (".json", ".csv", ".md", ".tex")


def add_parser(commands: Any) -> None:
    """Declare `evaluate`."""
    parser = commands.add_parser("evaluate", help="measure a folder of restored images", description=__doc__)
    parser.add_argument("sr", metavar="SR_DIR", type=Path, help="folder of restored images")
    parser.add_argument("--hq", metavar="DIR", type=Path, help="ground truth; without it, only metrics without hq")
    parser.add_argument("--protocol", help="how is measured; default: the one of --data, else weight-free-v1")
    parser.add_argument("--data", metavar="SET", help="the benchmark set these images are of (`realsr`, ...)")
    parser.add_argument("--label", help="what tables call the method (default: name of the folder)")
    parser.add_argument("--out", metavar="FILE", type=Path, nargs="+", default=[], help=".json, .csv, .md or .tex")
    parser.add_argument(
        "--against",
        metavar="WHAT",
        nargs="+",
        default=[],
        help="`published` (rows under the same protocol; needs --data), a .json of evaluate or test, or a .csv of "
        "published scores of these images",
    )
    parser.add_argument("--devices", type=int, default=1, help="processes, each with a GPU of its own (default: 1)")
    add_measuring_options(parser, missing="error")
    parser.set_defaults(run=run, passes_options_on=False)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print, compare, write.

    Raises:
        UsageError: an option cannot be used, or images do not pair or fit the protocol.
        MegaSRError: an image or a weight is missing or broken, or a file cannot be written.
    """
    for path in arguments.out:
        if path.suffix not in _ENDINGS:
            raise UsageError(f"--out {path}: the ending must be one of {', '.join(_ENDINGS)}")
    if "published" in arguments.against and arguments.data is None:
        raise UsageError("--against published needs --data, the name of the benchmark set")
    evaluation = _evaluate(arguments)
    label = arguments.label or arguments.sr.resolve().name
    for line in describe(evaluation):
        print(line)
    for other in arguments.against:
        print()
        for line in _against(evaluation, other, label):
            print(line)
    for path in arguments.out:
        _write(evaluation, path, label, with_published="published" in arguments.against)
        print(path)


def _evaluate(arguments: argparse.Namespace) -> Evaluation:
    from megasr.evaluation.folders import evaluate_folder
    from megasr.evaluation.pairing import pair_by_name
    from megasr.evaluation.table_content import BENCHMARK_IMAGES

    protocol, more = arguments.protocol or "weight-free-v1", {}
    if arguments.data is not None:
        from data_pipelines.benchmarks import get_benchmark

        benchmark = get_benchmark(arguments.data)
        protocol = arguments.protocol or benchmark.protocol
        found = len(pair_by_name(arguments.sr, arguments.hq, arguments.strip))
        if found > benchmark.count:
            raise UsageError(f"{arguments.sr} holds {found} images, but {benchmark}")
        more[BENCHMARK_IMAGES] = [found, benchmark.count]
    evaluator = make_evaluator(arguments, protocol)
    with measuring_progress() as progress:
        return evaluate_folder(
            arguments.sr,
            arguments.hq,
            evaluator,
            strip=arguments.strip,
            data=arguments.data,
            devices=arguments.devices,
            progress=lambda done, total: progress(f"measuring under {protocol}", done, total),
            more={**more, **_made_by(arguments.sr)},
        )


def _made_by(sr: Path) -> dict[str, Any]:
    """The provenance that `megasr test` left beside the images it restored: seed, configuration, checkpoint."""
    from megasr.evaluation.result import read_evaluation

    path = sr.resolve().parent / "test.json"
    return {"made_by": dict(read_evaluation(path).provenance)} if path.is_file() else {}


def describe(evaluation: Evaluation) -> list[str]:
    """What was found, in lines for a terminal."""
    from megasr.evaluation.distribution import caveat
    from megasr.evaluation.metric_weights import altered_files

    found = f"{len(evaluation.rows)} images" + (f" of {evaluation.data}" if evaluation.data else "")
    lines = [f"{evaluation.protocol} ({evaluation.fingerprint}), {found}"]
    protocol = evaluation.get_protocol()
    names = [n for n in protocol.metric_names if n in {**evaluation.means, **evaluation.set_values}]
    width = max(map(len, [*names, *evaluation.skipped]))
    for name in names:
        arrow = "↑" if protocol.metric(name).higher_is_better else "↓"
        value = evaluation.means.get(name, evaluation.set_values.get(name))
        low_high = evaluation.intervals.get(name)
        interval = "" if low_high is None else f"  [{low_high[0]:.4f}, {low_high[1]:.4f}]"
        lines.append(f"  {name:<{width}} {arrow} {value:9.4f}{interval}")
    lines += [f"  {name:<{width}}   skipped: {why}" for name, why in evaluation.skipped.items()]
    if evaluation.intervals:
        lines.append("intervals: 95 %, bootstrap over photographs")
    if "fid" in evaluation.set_values and (text := caveat(len(evaluation.rows))):
        lines.append(f"note: {text}")
    for name in altered_files(evaluation.provenance.get("weights", {})):
        lines.append(f"note: {name} is not the published file of this name, by its sha256")
    return lines


def _against(evaluation: Evaluation, other: str, label: str) -> list[str]:
    from megasr.evaluation.against import deviations, paired_differences
    from megasr.evaluation.result import read_evaluation
    from megasr.evaluation.tables import markdown

    if other == "published":
        return markdown([(label, evaluation)], _published(evaluation)).splitlines()
    path = Path(other)
    if path.suffix == ".json":
        lines = [f"{label} minus {path}, image by image, with 95 % intervals:"]
        for found in paired_differences(evaluation, read_evaluation(path)):
            i = found.interval
            lines.append(f"  {found.metric:<12} {i.mean:+9.4f}  [{i.low:+.4f}, {i.high:+.4f}]  {found.verdict}")
        return lines
    if path.suffix == ".csv":
        lines = [f"absolute deviation from {path}, over {len(evaluation.rows)} images:"]
        for gap in deviations(evaluation, path):
            lines.append(f"  {gap.metric:<12} largest {gap.largest:.2e} ({gap.key}), median {gap.median:.2e}")
        return lines
    raise unknown_name("comparison", other, ["published", "FILE.json", "FILE.csv"])


def _published(evaluation: Evaluation) -> Sequence[Any]:
    from megasr.evaluation.reference import published

    return published(evaluation.protocol, str(evaluation.data))


def _write(evaluation: Evaluation, path: Path, label: str, with_published: bool) -> None:
    from megasr.evaluation import tables
    from megasr.evaluation.result import write_evaluation
    from megasr.files import write_whole

    rows = _published(evaluation) if with_published else ()
    texts: dict[str, Callable[[], str]] = {
        ".csv": lambda: tables.rows_csv(evaluation),
        ".md": lambda: tables.markdown([(label, evaluation)], rows, intervals=True),
        ".tex": lambda: tables.latex([(label, evaluation)], rows),
    }
    if path.suffix == ".json":
        write_evaluation(evaluation, path)
    else:
        write_whole(path, texts[path.suffix]().encode())
