"""`megasr compare A/ B/ --hq HQ/ --out report.html`: scores and pictures of several methods on one page.

The page is one file that needs no network: tables that sort, a divider between any two pictures, and crops that move
together. The first folder is the one that the others are compared with.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.commands import baselines
from megasr.commands.evaluate import (
    Progress,
    add_measuring_options,
    check_metrics,
    make_evaluator,
    measuring_progress,
    usable_device,
)
from megasr.errors import UsageError
from megasr.files import check_page

if TYPE_CHECKING:
    from megasr.evaluation.evaluator import Evaluation, Evaluator


def add_parser(commands: Any) -> None:
    """Declare `compare`."""
    parser = commands.add_parser("compare", help="scores and pictures of several methods as one HTML page",
                                 description=__doc__)  # fmt: skip
    parser.add_argument(
        "folders", metavar="DIR", nargs="+", type=Path, help=f"folder of sr, one per method{baselines.HELP}"
    )
    parser.add_argument(
        "--hq", metavar="DIR", type=Path, help="ground truth; without it, only metrics without reference"
    )
    parser.add_argument("--lq", metavar="DIR", type=Path, help="what was restored: shown, and given to baselines")
    parser.add_argument("--out", metavar="FILE.html", type=Path, required=True, help="the page")
    parser.add_argument("--labels", metavar="NAME", nargs="+", help="of the methods (default: names of the folders)")
    parser.add_argument("--protocol", default="weight-free-v1", help="how is measured (default: weight-free-v1)")
    parser.add_argument("--webp-quality", metavar="Q", type=int, help="0 to 100: lossy pictures (default: lossless)")
    add_measuring_options(parser, missing="skip")
    parser.set_defaults(run=run, passes_options_on=False)


def run(arguments: argparse.Namespace) -> None:
    """Measure every folder and write the page.

    Raises:
        UsageError: an option cannot be used, or names or sizes of the images do not fit.
        MegaSRError: an image or a weight cannot be read, or the page cannot be written.
    """
    labels = _checked_labels(arguments)
    check_metrics(arguments.protocol, arguments.metrics)
    from megasr.evaluation.comparison import Method, check_labels, conflict_between, make_sources, sizes, write_page
    from megasr.evaluation.pairing import pair_by_name

    check_labels(labels)
    for folder in arguments.folders:
        _check_pictures(folder)
    evaluator = make_evaluator(arguments, arguments.protocol, missing="skip")
    with (
        measuring_progress() as progress,
        baselines.restored_baselines(arguments.folders, arguments, usable_device, progress) as restored,
    ):
        folders = [restored[folder].folder for folder in arguments.folders]
        first, *others = folders
        pictures = [{pair.key: pair.sr for pair in pair_by_name(first, None, arguments.strip)}]

        def of_first(folder: Path) -> dict[str, Path]:
            """Key -> file; the names must be those of the first folder."""
            pairs = pair_by_name(first, folder, arguments.strip)
            return {pair.key: pair.hq for pair in pairs if pair.hq is not None}

        pictures += map(of_first, others)
        hq, lq = (folder and of_first(folder) for folder in (arguments.hq, arguments.lq))
        # Before hours of measuring, not after.
        sizes(make_sources(dict(zip(labels, pictures, strict=True)), hq, lq), list(pictures[0]))
        methods = []
        for label, folder, files in zip(labels, folders, pictures, strict=True):
            evaluation = _evaluate(folder, list(files), evaluator, arguments, label, progress)
            methods.append(Method(label, evaluation, files))
        quality = arguments.webp_quality
        written = write_page(arguments.out, methods, hq=hq, lq=lq, webp_quality=quality, progress=progress)
    for other in methods[1:]:
        if note := conflict_between(other.evaluation, methods[0].evaluation):
            print(f"WARNING: {other.label} against {methods[0].label}: {note}")
    if evaluator.skipped:
        print(f"not taken: {', '.join(evaluator.skipped)}; the page says why")
    print(f"{arguments.out}: {len(pictures[0])} images, {len(methods)} methods, {written / 2**20:.1f} MiB")


def _check_pictures(folder: Path) -> None:
    """Say where the pictures of a run, a test or a study are, and which of them are unfinished.

    Raises:
        UsageError: the folder is not the one of the pictures, or not all of them are there.
    """
    from ablations.record import STUDY_FILE
    from ablations.results import METRICS_FILE
    from megasr.training.protocol_metrics import MARK, PICTURES, RESULT

    sr = PICTURES[0]

    def is_of(file: str, run: Path) -> bool:
        return (run / file).is_file()

    if is_of(STUDY_FILE, folder):
        runs = [path.parent for path in sorted(folder.glob(f"*/{METRICS_FILE}")) if path.with_name(sr).is_dir()]
        hq = "".join(f" --hq {path}" for path in list(folder.glob("*/hq"))[:1])
        name = f"name folders of its runs, such as {runs[0] / sr}{hq}" if runs else "no run of it is finished yet"
        raise UsageError(f"{folder} is the folder of a study: {name}")
    run = folder.parent if folder.name == sr else folder
    in_study = is_of(STUDY_FILE, run.parent)
    if in_study and not is_of(METRICS_FILE, run):
        raise UsageError(f"{run} is an unfinished run of a study: give `megasr study run` again, it goes on")
    if is_of(MARK.format(sr), run) and not is_of(RESULT, run):
        raise UsageError(f"{run} is of a test that did not end: run `megasr test` again")
    if folder == run and (in_study or is_of(RESULT, run)):
        raise UsageError(f"{folder} is the folder of a {'run' if in_study else 'test'}: its pictures are in {run / sr}")
    if not folder.is_dir() and is_of("config.yaml", run):
        raise UsageError(f"{run} is a run that was not tested yet: `megasr test` writes {run / sr}")


def _checked_labels(arguments: argparse.Namespace) -> list[str]:
    quality = arguments.webp_quality
    if quality is not None and not 0 <= quality <= 100:
        raise UsageError(f"--webp-quality is {quality}, must be from 0 to 100")
    check_page("--out", arguments.out)
    if arguments.labels is None:
        return default_labels(arguments.folders)
    if len(arguments.labels) != len(arguments.folders):
        raise UsageError(f"--labels names {len(arguments.labels)} methods for {len(arguments.folders)} folders")
    return list(arguments.labels)


def default_labels(folders: Sequence[Path]) -> list[str]:
    """Names of the folders, with as many parents as make them distinct, and distinct from lq and hq.

    Raises:
        UsageError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if twice := [str(folder) for folder, own in zip(folders, parts, strict=True) if parts.count(own) > 1]:
        raise UsageError(f"a folder is given twice: {', '.join(twice)}")
    depths = [1] * len(parts)
    while True:
        labels = ["/".join(own[-depth:]) for own, depth in zip(parts, depths, strict=True)]
        taken = [*labels, "lq", "hq"]
        if len(set(taken)) == len(taken):
            return labels
        depths = [depth + (taken.count(label) > 1) for depth, label in zip(depths, labels, strict=True)]


def _evaluate(
    folder: Path,
    keys: Sequence[str],
    evaluator: Evaluator,
    arguments: argparse.Namespace,
    label: str,
    progress: Progress,
) -> Evaluation:
    """The scores of a folder; of pictures that nothing can be said of, an evaluation without metrics."""
    from megasr.evaluation.evaluator import Evaluation
    from megasr.evaluation.folders import evaluate_folder
    from megasr.provenance import provenance

    if not evaluator.width:
        protocol, rows = evaluator.protocol, tuple({"key": key} for key in keys)
        about: Mapping[str, Any] = provenance(str(evaluator.device))
        return Evaluation(protocol.name, protocol.fingerprint, rows, {}, skipped=evaluator.skipped, provenance=about)
    return evaluate_folder(
        folder,
        arguments.hq,
        evaluator,
        strip=arguments.strip,
        progress=lambda done, total: progress(f"measuring {label}", done, total),
    )
