"""`megasr evaluate`: metrics of folders or benchmarks, as a table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.commands import baselines
from megasr.commands.early import benchmark_names
from megasr.console import progress_bars
from megasr.errors import MegaSRError, UsageError, first_line, split_names, unknown_name

if TYPE_CHECKING:
    from megasr.evaluation.evaluator import Evaluation, Evaluator
    from megasr.evaluation.metrics import Missing
    from megasr.evaluation.protocol import MetricSpec, PublishedRow
    from megasr.evaluation.tables import Labelled


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
    if names == []:
        raise UsageError(f"--metrics {metrics!r} names none: write A,B, or leave it out for all")
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


ENDINGS = (".json", ".csv", ".md", ".tex")
_FEW = "--correlations needs two metrics per image and four images"
_NEEDS_DATA = "--against published needs --data, the name of the benchmark set"


def describe(evaluation: Evaluation) -> list[str]:
    """What was measured, in lines for a terminal."""
    from megasr.evaluation.metrics import altered_files, caveat

    count, values = len(evaluation.rows), {**evaluation.means, **evaluation.set_values}
    of = f" of {evaluation.data}" if evaluation.data else ""
    lines = [f"{evaluation.protocol} ({evaluation.fingerprint}), {count} image{'s' * (count != 1)}{of}"]
    width = max(map(len, [*values, *evaluation.skipped]))
    for metric in evaluation.get_protocol().metrics:
        if (name := metric.name) in values:
            low_high = evaluation.intervals.get(name)
            interval = "" if low_high is None else f"  [{low_high[0]:.4f}, {low_high[1]:.4f}]"
            lines.append(f"  {name:<{width}} {'↑' if metric.higher_is_better else '↓'} {values[name]:9.4f}{interval}")
    lines += [f"  {name:<{width}}   skipped: {why}" for name, why in evaluation.skipped.items()]
    if evaluation.intervals:
        lines.append("intervals: 95 %, over photographs")
    if "fid" in evaluation.set_values and (text := caveat(count)):
        lines.append(f"note: {text}")
    for name in altered_files(evaluation.provenance.get("weights", {})):
        lines.append(f"note: {name} is not the published file of this name, by its sha256")
    return lines


def beside(evaluation: Evaluation, path: Path, label: str) -> list[str]:
    """An evaluation beside a .json of before or a .csv of scores, in lines for a terminal."""
    from megasr.evaluation.agreement import conflict
    from megasr.evaluation.comparison import deviations, paired_differences
    from megasr.evaluation.evaluator import read_evaluation

    if path.suffix == ".json":
        lines = [f"{label} minus {path}, image by image, with 95 % intervals:"]
        differences = paired_differences(evaluation, read_evaluation(path))
        for one in differences:
            i = one.interval
            lines.append(f"  {one.metric:<12} {i.mean:+9.4f}  [{i.low:+.4f}, {i.high:+.4f}]  {one.verdict}")
        return lines + (
            [f"WARNING: {note}"] if (note := conflict({one.metric: one.verdict for one in differences})) else []
        )
    lines = [f"{label}, absolute deviation from {path}, over {len(evaluation.rows)} images:"]
    for metric, gap in deviations(evaluation, path).iterrows():
        lines.append(f"  {metric:<12} largest {gap['largest']:.2e} ({gap['key']}), median {gap['median']:.2e}")
    return lines


def agreement(measured: Sequence[Labelled], correlations: bool) -> list[str]:
    """Where metrics disagree on a method and the first, and how they correlate, in lines for a terminal.

    Raises:
        UsageError: correlations are asked for of fewer than two metrics or four images.
    """
    from megasr.evaluation.agreement import rank_correlations
    from megasr.evaluation.comparison import conflict_between

    (first_label, first), *others = measured
    lines = []
    for label, evaluation in others:
        if note := conflict_between(evaluation, first):
            lines.append(f"WARNING: {label} against {first_label}: {note}")
    if correlations:
        found = rank_correlations(first, [evaluation for _, evaluation in others])
        if found is None:
            raise UsageError(_FEW)
        lines += [found.markdown(), ""]
    return lines


def write(measured: Sequence[Labelled], path: Path, published: Sequence[PublishedRow]) -> None:
    """Write what the ending of the file asks for. Raises MegaSRError when it cannot."""
    from megasr.evaluation.evaluator import write_evaluation
    from megasr.evaluation.tables import means_frame, rows_csv, text_table
    from megasr.files import write_whole

    if path.suffix == ".json":
        write_evaluation(measured[0][1], path)
        return
    if path.suffix == ".csv":
        single = len(measured) == 1
        text = rows_csv(measured[0][1]) if single else means_frame(measured, published).to_csv(index=False)
    elif path.suffix == ".md":
        text = text_table(measured, published, intervals=True).markdown()
    else:
        text = text_table(measured, published).latex()
    write_whole(path, text.encode("utf-8", "surrogateescape"))  # names of files need not be UTF-8


def add_parser(commands: Any) -> None:
    """Declare `evaluate`."""
    parser = commands.add_parser("evaluate", help="measure folders of restored images", description=__doc__)
    parser.add_argument(
        "sr",
        metavar="SR",
        type=Path,
        nargs="+",
        help=f"folder of restored images, or a .json of before{baselines.HELP}",
    )
    parser.add_argument("--lq", metavar="DIR", type=Path, help="what baselines restore")
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
    parser.add_argument(
        "--correlations",
        action="store_true",
        help="print rank correlations between the metrics, over images, or over gains on the first SR",
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
    _check_inputs(arguments)
    with measuring_progress() as progress:
        with baselines.restored_baselines(arguments.sr, arguments, usable_device, progress) as restored:
            pairs = zip(labels, arguments.sr, strict=True)
            measured = [(label, _evaluation(restored[sr], arguments, label, progress)) for label, sr in pairs]
    for label, evaluation in measured:
        print(f"{label}: " + "\n".join(describe(evaluation)) + "\n")
    rows = _published(measured) if "published" in arguments.against else ()
    if len(measured) > 1 or rows:
        from megasr.evaluation.tables import text_table

        print(text_table(measured, rows).markdown())
    for path in arguments.out:  # before a comparison can fail: measuring may have taken hours
        write(measured, path, rows)
        print(path)
    if len(measured) > 1 or arguments.correlations:
        print("\n".join(agreement(measured, arguments.correlations)))
    for other in arguments.against:
        for label, evaluation in measured if other != "published" else ():
            print("\n".join(beside(evaluation, Path(other), label)))


def _checked_labels(arguments: argparse.Namespace) -> list[str]:
    """Check the options before anything is measured, and name the methods."""
    for path in arguments.out:
        if path.suffix not in ENDINGS:
            raise UsageError(f"--out {path}: the ending must be one of {', '.join(ENDINGS)}")
        if path.suffix == ".json" and len(arguments.sr) > 1:
            raise UsageError(f"--out {path}: a .json holds one evaluation; write those of the methods one by one")
    for other in arguments.against:
        if other != "published" and Path(other).suffix not in (".json", ".csv"):
            raise unknown_name("comparison", other, ["published", "FILE.json", "FILE.csv"])
        if other != "published" and not Path(other).is_file():
            raise UsageError(f"--against {other}: no such file")
    before = [sr for sr in arguments.sr if sr.suffix == ".json"]
    if "published" in arguments.against and arguments.data is None and not before:
        raise UsageError(_NEEDS_DATA)
    if len(before) == len(arguments.sr):
        names = ("hq", "lq", "protocol", "missing", "device", "metrics", "weights_dir", "strip")
        idle = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]
        if idle := idle + ["--devices"] * (arguments.devices != 1):
            raise UsageError(f"{', '.join(idle)}: nothing is measured, every SR is a .json of before")
    labels = list(arguments.labels or map(_name, arguments.sr))
    if len(labels) != len(arguments.sr):
        raise UsageError(f"--labels names {len(labels)} methods for {len(arguments.sr)} SR")
    if len(set(labels)) < len(labels):
        raise UsageError(f"methods of one name: {', '.join(labels)}; tell them apart with --labels")
    return labels


def _check_inputs(arguments: argparse.Namespace) -> None:
    """Check protocol, names, numbers and sizes of everything before the first image is measured."""
    from megasr.evaluation.pairing import pair_by_name
    from megasr.evaluation.protocol import get_protocol, published

    protocol = _protocol(arguments)
    check_metrics(protocol, arguments.metrics)
    measured = [sr for sr in arguments.sr if sr.suffix != ".json"]
    folders = [sr for sr in measured if not baselines.is_baseline(sr)]
    if measured and "published" in arguments.against and arguments.data is not None:
        published(protocol, arguments.data)
    paired = {sr: pair_by_name(sr, arguments.hq, arguments.strip) for sr in folders}
    if len(folders) < len(measured):
        _chosen_metrics(arguments, protocol)  # missing weights are refused before a baseline restores for hours
        baselines.check_baselines(measured, arguments)
        if arguments.hq is not None:  # sr will be of the sizes of hq
            paired[arguments.hq] = pair_by_name(arguments.hq, None, arguments.strip)
    elif arguments.lq is not None:
        raise UsageError("--lq: there is no baseline among the SR, which alone restore it")
    from megasr.evaluation.folders import check_sizes

    for sr, pairs in paired.items():
        _whole_set(arguments.data, len(pairs), sr)
        check_sizes(pairs, get_protocol(protocol))
    if arguments.correlations:
        _check_correlations(arguments, protocol)


def _check_correlations(arguments: argparse.Namespace, protocol: str) -> None:
    """Refuse --correlations of too few metrics or images. Raises as _chosen_metrics, and UsageError."""
    from megasr.evaluation.agreement import can_correlate
    from megasr.evaluation.evaluator import read_evaluation
    from megasr.evaluation.pairing import keyed_images

    before = {sr: read_evaluation(sr) for sr in arguments.sr if sr.suffix == ".json"}
    names = [set(evaluation.means) for evaluation in before.values()]
    if len(before) < len(arguments.sr):
        names.append({metric.name for metric in _chosen_metrics(arguments, protocol) if not metric.of_set})
    first = arguments.sr[0]
    folder = arguments.lq if baselines.is_baseline(first) else first
    images = len(before[first].rows if first in before else keyed_images(folder, arguments.strip))
    metrics = sorted(set.intersection(*names))
    if not can_correlate(len(metrics), images):
        found = f"here are {images} image{'s' * (images != 1)} and {', '.join(metrics) or 'no metric'}"
        raise UsageError(f"{_FEW}; {found}")


def _chosen_metrics(arguments: argparse.Namespace, protocol: str) -> list[MetricSpec]:
    """The metrics that will be taken of what is not measured yet. Raises as choose_metrics."""
    from megasr.evaluation.metrics import choose_metrics
    from megasr.evaluation.protocol import get_protocol

    chosen, _ = choose_metrics(
        get_protocol(protocol),
        check_metrics(protocol, arguments.metrics),
        has_hq=arguments.hq is not None,
        weights_dir=arguments.weights_dir,
        missing=arguments.missing or "error",
    )
    return chosen


def _protocol(arguments: argparse.Namespace) -> str:
    """The protocol that was named, or that goes with the set of images."""
    if arguments.protocol is not None or arguments.data is None:
        return arguments.protocol or "weight-free-v1"
    from data_pipelines.benchmarks import BENCHMARKS
    from megasr.evaluation.protocol import published_rows

    known = {row.data: row.protocol for row in reversed(published_rows())}  # the first one that has this set
    known |= {name: benchmark.protocol for name, benchmark in BENCHMARKS.items()}
    if arguments.data not in known:
        raise unknown_name("set of images", arguments.data, known)
    return known[arguments.data]


def _whole_set(data: str | None, count: int, where: Path) -> dict[str, list[int]]:
    """How many images of a benchmark set there are, for the provenance.

    Raises:
        UsageError: there are more than the set has.
    """
    if data is None or data not in benchmark_names():
        return {}
    from data_pipelines.benchmarks import BENCHMARKS
    from megasr.evaluation.evaluator import BENCHMARK_IMAGES

    if count > BENCHMARKS[data].count:
        raise UsageError(f"{where} holds {count} images, but {BENCHMARKS[data]}")
    return {BENCHMARK_IMAGES: [count, BENCHMARKS[data].count]}


def _name(sr: Path) -> str:
    """mine/ -> mine; runs/mine/sr, runs/mine/test.json, runs/mine/realsr/sr -> mine; mine.json -> mine."""
    path = sr.resolve()
    if path.name not in ("sr", "test.json"):
        return path.stem if path.suffix in (".json", ".pth", ".safetensors") else path.name
    run = path.parent
    return run.parent.name if run.name in benchmark_names() else run.name


def _evaluation(
    restored: baselines.Restored, arguments: argparse.Namespace, label: str, progress: Progress
) -> Evaluation:
    from megasr.evaluation.folders import evaluate_folder
    from megasr.evaluation.pairing import keyed_images

    sr = restored.folder
    if sr.suffix == ".json":
        return _read(sr, arguments.data)
    keys = tuple(keyed_images(sr, arguments.strip))
    return evaluate_folder(
        sr,
        arguments.hq,
        make_evaluator(arguments, _protocol(arguments), missing="error"),
        strip=arguments.strip,
        data=arguments.data,
        devices=arguments.devices,
        progress=lambda done, total: progress(f"measuring {label}", done, total),
        more={**_whole_set(arguments.data, len(keys), sr), **_made_by(sr, keys), **restored.made_by},
    )


def _read(path: Path, data: str | None) -> Evaluation:
    """What was measured before; `data` names its set where that was left open."""
    from megasr.evaluation.evaluator import read_evaluation

    before = read_evaluation(path)
    if data is None:
        return before
    if before.data not in (None, data):
        raise UsageError(f"{path} is of the set {before.data}, not of {data}")
    images = _whole_set(data, len(before.rows), path)
    return replace(before, data=data, provenance={**images, **before.provenance})


def _made_by(sr: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """The provenance that `megasr test` left beside these images: seed, configuration, checkpoint."""
    from megasr.evaluation.evaluator import read_evaluation

    try:
        before = read_evaluation(sr.resolve().parent / "test.json")
    except MegaSRError:  # there is none, or it is something else
        return {}
    own = sr.resolve().name == "sr" and sorted(before.keys) == sorted(keys)
    return {"made_by": dict(before.provenance)} if own else {}


def _published(measured: Sequence[Labelled]) -> Sequence[PublishedRow]:
    from megasr.evaluation.protocol import published
    from megasr.evaluation.tables import data_name

    data = data_name(measured)
    if data is None:
        raise UsageError(_NEEDS_DATA)
    return published(measured[0][1].protocol, data)
