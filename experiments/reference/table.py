"""The markdown tables over all references, and their place in a file between two marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from experiments.reference.records import Reference, same_images
from megasr.errors import UsageError
from megasr.evaluation.intervals import Interval
from megasr.evaluation.protocol import Protocol, get_protocol

BEGIN, END = "<!-- reference -->", "<!-- /reference -->"
AGAINST = {"tiny": "tiny/controlnet_only", "survival": "survival/none"}  # folder -> what its recipes are compared with
COMPARED = ("ssim_y", "fsim")  # fidelity of pixels and of structure
NOTHING = "Reference numbers: not measured yet (`python -m experiments.reference measure --help`)."


def make_table(references: Sequence[Reference], against: str | None = None) -> str:
    """Two tables per folder of recipes: values and what they cost, and paired differences of COMPARED.

    Args:
        references: what is measured.
        against: name of the recipe that every recipe of its folder is compared with, beside bicubic; None takes
            AGAINST's.

    Raises:
        UsageError: references of one folder were taken on other images, under another protocol or with another prior.
    """
    folders: dict[str, list[Reference]] = {}
    for reference in references:
        folders.setdefault(str(PurePosixPath(reference.recipe).parent), []).append(reference)
    tables = (_table(rows, against or AGAINST.get(folder)) for folder, rows in folders.items())
    return "\n\n".join(tables) or NOTHING


def replace_block(text: str, block: str, name: str) -> str:
    """The text with what stands between the marks replaced.

    Raises:
        UsageError: the marks are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{name} has no {BEGIN} followed by {END}: nowhere to write the table")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def _table(references: Sequence[Reference], against: str | None) -> str:
    baseline = next((reference for reference in references if reference.recipe == against), None)
    first = baseline or references[0]
    for other in references:
        _check_comparable(first, other)
    protocol = get_protocol(first.protocol)
    ordered = sorted(references, key=lambda reference: (reference is not baseline, reference.recipe))
    head = ["adapter", *(_heading(protocol, name) for name in first.metrics), "training", "seeds", "steps", "date"]
    values = _markdown([head, _bicubic_row(first, len(head)), *(_row(reference) for reference in ordered)])
    others = [None, *([baseline] if baseline else [])]
    head = [f"{metric} - {_short(other.recipe) if other else 'bicubic'}" for metric in COMPARED for other in others]
    rows = [[_link(reference), *_differences(reference, others)] for reference in ordered]
    return "\n\n".join([values, _markdown([["adapter", *head], *rows]), _caption(references)])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _check_comparable(first: Reference, other: Reference) -> None:
    shared = first.fingerprints.keys() & other.fingerprints.keys() - {"recipe"}
    parts = sorted(part for part in shared if first.fingerprints[part] != other.fingerprints[part])
    if not same_images(first.bicubic, other.bicubic):
        parts.append("evaluation images")
    if parts:
        raise UsageError(
            f"{first.recipe} and {other.recipe} were measured with another {' and '.join(parts)}: they do not "
            "belong in one table; measure the older one again"
        )


def _heading(protocol: Protocol, metric: str) -> str:
    return f"{metric} {'↑' if protocol.metric(metric).higher_is_better else '↓'}"


def _bicubic_row(reference: Reference, width: int) -> list[str]:
    """Bicubic has no seed: its intervals are over images alone."""
    cells = ["bicubic", *(_interval(reference.bicubic_interval(metric)) for metric in reference.metrics)]
    return cells + ["-"] * (width - len(cells))


def _link(reference: Reference) -> str:
    return f"[{_short(reference.recipe)}](experiments/{reference.recipe}.yaml)"


def _row(reference: Reference) -> list[str]:
    cells = [_link(reference), *(_interval(reference.interval(metric)) for metric in reference.metrics)]
    seconds = sum(run.train_s for run in reference.runs) / len(reference.runs)
    dates = sorted(run.time[:10] for run in reference.runs)
    seeds = ", ".join(map(str, reference.seeds))
    return [*cells, f"{seconds / 60:.1f} min", seeds, str(reference.steps), dates[-1]]


def _differences(reference: Reference, others: Sequence[Reference | None]) -> list[str]:
    pairs = [(metric, other) for metric in COMPARED for other in others]
    return [
        "-" if other is reference else _interval(reference.difference(other, metric), signed=True)
        for metric, other in pairs
    ]


def _interval(interval: Interval | None, signed: bool = False) -> str:
    if interval is None:
        return "no common seed"
    sign, places = "+" if signed else "", 2 if abs(interval.mean) >= 10 else 4
    numbers = (f"{value:{sign}.{places}f}" for value in (interval.mean, interval.low, interval.high))
    return "{} [{}, {}]".format(*numbers)


def _short(name: str) -> str:
    return PurePosixPath(name).name


def _caption(references: Sequence[Reference]) -> str:
    first, runs = references[0], [run for reference in references for run in reference.runs]
    platforms = dict.fromkeys(
        f"{run.platform['device'] if run.platform['device'] != 'cpu' else run.platform['cpu']}, "
        f"{run.platform['threads']} CPU thread(s)"
        for run in runs
    )
    text = (
        f"Protocol {first.protocol}, {len(first.bicubic)} images; means with 95 % intervals over images and seeds, "
        "differences paired over both and not corrected for their number. "
    )
    if any(len(reference.runs) == 1 for reference in references):
        text += "The intervals of a single seed say nothing about other seeds. "
    commits = ", ".join(sorted({str(run.commit) for run in runs}))
    return (
        text
        + f"Training per seed on: {'; '.join(platforms)}. Code: {commits}. `python -m experiments.reference --help`"
    )
