"""What the study of a folder was begun as: a study file that was changed since may add, and change nothing.

Its wording, which no run depends on, may be changed: the report says what it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ablations.evaluation import EvaluationSet, study_metrics
from ablations.plan import RunPlan, present
from ablations.registry import Study
from megasr.errors import MegaSRError
from megasr.files import write_whole

STUDY_FILE = "study.json"  # whose folder it is
RECIPE_FILE = "recipe.yaml"  # that the study was last run with
_SEEDS = ("model.seed", "data.init_args.seed")
Leaves = dict[str, Any]  # dotted path -> value


@dataclass(frozen=True)
class StudyRecord:
    """What may not change while a study grows.

    Attributes:
        study: its name.
        primary_metric, holdout_metric: `<identity of the set>/<metric>`; None where there is no such metric.
        reference: the resolved config of the reference.
        ablations: name -> what is different.
        controls: name -> kind.
        sets: name of an evaluation set -> identity of its images.
        baselines: their names.
        wording: "question" and "expected of <ablation>" -> the text of the beginning.
    """

    study: str
    primary_metric: str
    holdout_metric: str | None
    reference: Leaves
    ablations: dict[str, Leaves]
    controls: dict[str, str]
    sets: dict[str, str]
    baselines: list[str] = field(default_factory=list)  # older studies have none written down
    wording: dict[str, str] = field(default_factory=dict)


def make_record(study: Study, plans: Sequence[RunPlan], sets: Sequence[EvaluationSet]) -> StudyRecord:
    """The record of a planned study."""
    configs: dict[str, Leaves] = {}
    for plan in plans:
        if plan.seed is not None and plan.ablation not in configs:
            configs[plan.ablation] = {k: v for k, v in present(plan.config).items() if k not in _SEEDS}
    reference = configs.pop(study.reference.name)
    metrics = study_metrics(sets)

    def identified(name: str | None) -> str | None:
        return name and f"{metrics[name][0].identity}/{name.rpartition('/')[2]}"

    return StudyRecord(
        study.name,
        str(identified(study.primary_metric)),
        identified(study.holdout_metric),
        reference,
        {name: dict(_differences(reference, config)) for name, config in configs.items()},
        dict(study.controls),
        {one.name: one.identity for one in sets},
        [plan.ablation for plan in plans if plan.seed is None],
        {"question": study.question} | {f"expected of {one.name}": one.hypothesis for one in study.ablations},
    )


def _differences(before: Leaves, after: Leaves) -> Iterator[tuple[str, Any]]:
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            yield path, after.get(path)


def read_record(folder: Path) -> StudyRecord | None:
    """The record in a study's folder; None when there is none.

    Raises:
        MegaSRError: it cannot be understood.
    """
    path = folder / STUDY_FILE
    if not path.is_file():
        return None
    try:
        return StudyRecord(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise MegaSRError(f"{path} is damaged ({error}); delete it if the study file has not changed") from error


def write_record(record: StudyRecord, folder: Path) -> None:
    """Write it, whole or not at all, with the wording of the beginning. Raises MegaSRError when it cannot."""
    if (begun := read_record(folder)) is not None:
        record = replace(record, wording=record.wording | begun.wording)
    write_whole(folder / STUDY_FILE, json.dumps(asdict(record), indent=1).encode())


def reworded(before: StudyRecord, after: StudyRecord) -> list[str]:
    """What is said in other words now, a line each."""
    texts = [(what, text, after.wording.get(what, text)) for what, text in before.wording.items()]
    return [f"{what}: {old!r} -> {new!r}" for what, old, new in texts if old != new]


def changes(before: StudyRecord, after: StudyRecord) -> list[str]:
    """What was changed or removed, a line each; what was added is not listed."""
    lines = [
        f"{name}: {old} -> {new}"
        for name in ("primary_metric", "holdout_metric")
        if (old := getattr(before, name)) not in (None, new := getattr(after, name))
    ]
    lines += _changed("reference", before.reference, after.reference)
    for name, leaves in before.ablations.items():
        now = after.ablations.get(name)
        lines += [f"ablation {name}: removed"] if now is None else _changed(f"ablation {name}", leaves, now)
    lines += [f"control {name}: {kind} -> {after.controls.get(name)}" for name, kind in before.controls.items()
              if after.controls.get(name) != kind]  # fmt: skip
    lines += [f"baseline {name}: removed" for name in before.baselines if name not in after.baselines]
    for name, identity in before.sets.items():
        if identity != after.sets.get(name, identity):
            lines.append(f"evaluation set {name}: {identity} -> {after.sets[name]}")
        elif identity not in after.sets.values():
            lines.append(f"evaluation set {name}: removed")
    return lines


def _changed(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    paths = sorted(before.keys() | after.keys())
    told = [(path, before.get(path), after.get(path)) for path in paths]
    return [f"{what}: {path} {old!r} -> {new!r}" for path, old, new in told if old != new]
