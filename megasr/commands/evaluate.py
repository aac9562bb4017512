"""`megasr evaluate SR_DIR --hq HQ_DIR --protocol NAME`: take the numbers of restored images, and compare them.

What was measured before (the .json of this command, or of `megasr test`) may stand in the place of a folder. The
ending of a file says what is written: .json rows, means, intervals and where they come from; .csv the rows of one
method, the means of several; .md and .tex a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.commands.measuring import add_measuring_options, make_evaluator, measuring_progress
from megasr.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from megasr.commands.measuring import Progress
    from megasr.evaluation.result import Evaluation
    from megasr.evaluation.table_content import Labelled

_ENDINGS = (".json", ".csv", ".md", ".tex")


def add_parser(commands: Any) -> None:
    """Declare `evaluate`."""
    parser = commands.add_parser("evaluate", help="measure folders of restored images", description=__doc__)
    parser.add_argument(
        "sr", metavar="SR", type=Path, nargs="+", help="folder of restored images, or a .json of before"
    )
    parser.add_argument("--hq", metavar="DIR", type=Path, help="ground truth; without it, only metrics without hq")
    parser.add_argument("--protocol", help="how is measured; default: the one of --data, else weight-free-v1")
    parser.add_argument("--data", metavar="SET", help="the benchmark set these images are of (`realsr`, ...)")
    parser.add_argument("--labels", metavar="NAME", nargs="+", help="what tables call the methods (default: folders)")
    parser.add_argument("--out", metavar="FILE", type=Path, nargs="+", default=[], help=".json, .csv, .md or .tex")
    parser.add_argument(
        "--against",
        metavar="WHAT",
        nargs="+",
        default=[],
        help="`published` (rows of the same benchmark set under the same protocol), a .json of before, or a .csv of "
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
    labels = _checked_labels(arguments)
    _check_folders(arguments)
    with measuring_progress() as progress:
        found = [
            (label, _evaluation(sr, arguments, label, progress)) for label, sr in zip(labels, arguments.sr, strict=True)
        ]
    for label, evaluation in found:
        _print_lines([f"{label}: {describe(evaluation)[0]}", *describe(evaluation)[1:], ""])
    rows = _published(found) if "published" in arguments.against else ()
    if len(found) > 1 or rows:
        from megasr.evaluation.tables import markdown

        _print_lines([*markdown(found, rows).splitlines(), ""])
    for path in arguments.out:  # before a comparison can fail: measuring may have taken hours
        _write(found, path, rows)
        print(path)
    for other in arguments.against:
        for label, evaluation in found:
            _print_lines(_against(evaluation, other, label))


def _checked_labels(arguments: argparse.Namespace) -> list[str]:
    """Check what can be before anything is measured, and name the methods."""
    for path in arguments.out:
        if path.suffix not in _ENDINGS:
            raise UsageError(f"--out {path}: the ending must be one of {', '.join(_ENDINGS)}")
        if path.suffix == ".json" and len(arguments.sr) > 1:
            raise UsageError(
                f"--out {path}: a .json holds one evaluation; write those of {len(arguments.sr)} one by one"
            )
    for other in arguments.against:
        if other != "published" and Path(other).suffix not in (".json", ".csv"):
            raise unknown_name("comparison", other, ["published", "FILE.json", "FILE.csv"])
    measured_before = [sr for sr in arguments.sr if sr.suffix == ".json"]
    if "published" in arguments.against and arguments.data is None and not measured_before:
        raise UsageError("--against published needs --data, the name of the benchmark set")
    if len(measured_before) == len(arguments.sr):
        given = {"--hq": arguments.hq, "--protocol": arguments.protocol, "--data": arguments.data}
        given |= {"--device": arguments.device, "--devices": arguments.devices != 1}
        given |= {"--metrics": arguments.metrics, "--weights-dir": arguments.weights_dir, "--strip": arguments.strip}
        if idle := [name for name, value in given.items() if value]:
            raise UsageError(f"{', '.join(idle)}: nothing is measured, every SR is a .json of before")
    labels = arguments.labels or [_name(sr) for sr in arguments.sr]
    if len(labels) != len(arguments.sr):
        raise UsageError(f"--labels names {len(labels)} methods for {len(arguments.sr)} SR")
    if len(set(labels)) < len(labels):
        raise UsageError(f"methods of one name: {', '.join(labels)}; tell them apart with --labels")
    return list(labels)


def _check_folders(arguments: argparse.Namespace) -> None:
    """Pair and count the images of every folder before the first is measured."""
    from megasr.evaluation.pairing import pair_by_name

    for sr in (sr for sr in arguments.sr if sr.suffix != ".json"):
        found = len(pair_by_name(sr, arguments.hq, arguments.strip))
        if arguments.data is not None:
            from data_pipelines.benchmarks import get_benchmark

            benchmark = get_benchmark(arguments.data)
            if found > benchmark.count:
                raise UsageError(f"{sr} holds {found} images, but {benchmark}")


def _name(sr: Path) -> str:
    """mine/ -> mine, runs/mine/sr -> mine, runs/mine/test.json -> mine, mine.json -> mine."""
    path = sr.resolve()
    return path.parent.name if path.name in ("sr", "test.json") else path.stem if path.suffix == ".json" else path.name


def _evaluation(sr: Path, arguments: argparse.Namespace, label: str, progress: Progress) -> Evaluation:
    from megasr.evaluation.folders import evaluate_folder
    from megasr.evaluation.pairing import keyed_images
    from megasr.evaluation.result import read_evaluation
    from megasr.evaluation.table_content import BENCHMARK_IMAGES

    if sr.suffix == ".json":
        return read_evaluation(sr)
    protocol, more = arguments.protocol or "weight-free-v1", {}
    if arguments.data is not None:
        from data_pipelines.benchmarks import get_benchmark

        benchmark = get_benchmark(arguments.data)
        protocol = arguments.protocol or benchmark.protocol
        more[BENCHMARK_IMAGES] = [len(keyed_images(sr, arguments.strip)), benchmark.count]
    return evaluate_folder(
        sr,
        arguments.hq,
        make_evaluator(arguments, protocol),
        strip=arguments.strip,
        data=arguments.data,
        devices=arguments.devices,
        progress=lambda done, total: progress(f"measuring {label}", done, total),
        more={**more, **_made_by(sr)},
    )


def _made_by(sr: Path) -> dict[str, Any]:
    """The provenance that `megasr test` left beside the images it restored: seed, configuration, checkpoint."""
    from megasr.evaluation.result import read_evaluation

    folder = sr.resolve()
    path = folder.parent / "test.json"
    if folder.name != "sr" or not path.is_file():
        return {}
    return {"made_by": dict(read_evaluation(path).provenance)}


def describe(evaluation: Evaluation) -> list[str]:
    """What was found, in lines for a terminal."""
    from megasr.evaluation.distribution import caveat
    from megasr.evaluation.metric_weights import altered_files

    count = len(evaluation.rows)
    found = f"{count} image{'s' * (count != 1)}" + (f" of {evaluation.data}" if evaluation.data else "")
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


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


def _against(evaluation: Evaluation, other: str, label: str) -> list[str]:
    from megasr.evaluation.against import deviations, paired_differences
    from megasr.evaluation.result import read_evaluation

    path = Path(other)
    if path.suffix == ".json":
        lines = [f"{label} minus {path}, image by image, with 95 % intervals:"]
        for found in paired_differences(evaluation, read_evaluation(path)):
            i = found.interval
            lines.append(f"  {found.metric:<12} {i.mean:+9.4f}  [{i.low:+.4f}, {i.high:+.4f}]  {found.verdict}")
        return lines
    if path.suffix == ".csv":
        lines = [f"{label}, absolute deviation from {path}, over {len(evaluation.rows)} images:"]
        for gap in deviations(evaluation, path):
            lines.append(f"  {gap.metric:<12} largest {gap.largest:.2e} ({gap.key}), median {gap.median:.2e}")
        return lines
    return []  # published rows stand in the table


def _published(found: Sequence[Labelled]) -> Sequence[Any]:
    from megasr.evaluation.reference import published
    from megasr.evaluation.table_content import data_name

    data = data_name(found)
    if data is None:
        raise UsageError("--against published needs --data, the name of the benchmark set")
    return published(found[0][1].protocol, data)


def _write(found: Sequence[Labelled], path: Path, rows: Sequence[Any]) -> None:
    from megasr.evaluation import tables
    from megasr.evaluation.result import write_evaluation
    from megasr.files import write_whole

    evaluation = found[0][1]
    texts: dict[str, Callable[[], str]] = {
        ".csv": lambda: tables.rows_csv(evaluation) if len(found) == 1 else tables.means_csv(found, rows),
        ".md": lambda: tables.markdown(found, rows, intervals=True),
        ".tex": lambda: tables.latex(found, rows),
    }
    if path.suffix == ".json":
        write_evaluation(evaluation, path)
    else:
        write_whole(path, texts[path.suffix]().encode("utf-8", "surrogateescape"))  # names of files need not be UTF-8
