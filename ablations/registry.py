"""Ablations and studies: named config changes, each declaring what it touches, grouped by the question they answer.

A module of your own calls `register(Study(...))`; `MEGASR_IMPORT=my_module megasr study run my_study ...` runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megasr.errors import UsageError, unknown_name
from megasr.plugins import Registry

Control = Literal["negative", "positive"]
Config = dict[str, Any]  # nested: section -> field -> value, as in the recipe's YAML
BICUBIC = "bicubic"  # the baseline of every study
_NAME = re.compile(r"[a-z0-9][a-z0-9_+-]*")  # names become folders and run ids


@dataclass(frozen=True)
class Ablation:
    """A named change of a config.

    Attributes:
        name: lower case; part of the run id.
        changes: dotted config path -> new value ("model.adapter.guidance" -> ("canny",)). The path of a section
            replaces the whole section.
        touches: dotted paths (or prefixes of paths) inside which every difference must lie.
        description: one line for the report.
        combination: the guidance types that the change stands for, () for none; None for other changes. Shapley values
            and interactions are computed from these.
        hypothesis: one sentence, written before the runs: what is expected against the reference, and why.
    """

    name: str
    changes: Mapping[str, Any]
    touches: tuple[str, ...]
    description: str
    combination: tuple[str, ...] | None = None
    hypothesis: str = ""

    def __post_init__(self) -> None:
        _check_name("ablation", self.name)


def change(name: str, changes: Mapping[str, Any], description: str, hypothesis: str = "") -> Ablation:
    """An ablation that touches exactly the paths that it changes."""
    return Ablation(name, changes, tuple(changes), description, hypothesis=hypothesis)


@dataclass(frozen=True)
class Study:
    """A question over many runs.

    Attributes:
        name: part of the run ids.
        question: what the study answers, as one sentence.
        reference: what every ablation is compared with; its changes are applied to the recipe before all others.
        ablations: the alternatives, each a change of the reference.
        primary_metric: the metric of the protocol that decides, named before any run; all others are exploratory.
        least_difference: smallest difference in the primary metric that counts, as measured between two machines (the
            recipe's `study.least_difference`); 0 where that has not been measured.
        holdout_metric: a metric that no objective optimises and no verdict uses (the recipe's `study.holdout_metric`):
            the report says where it contradicts the primary one.
        baselines: what is restored without a training and shown beside the runs (the recipe's `study.baselines`):
            `bicubic`, which every study has, `realesrgan-x4plus`, or a file of an RRDBNet's weights.
        controls: ablation name -> "negative" (must not help) or "positive" (must help). A study whose controls fail is
            reported as not trustworthy.
    """

    name: str
    question: str
    reference: Ablation
    ablations: tuple[Ablation, ...]
    primary_metric: str
    controls: Mapping[str, Control] = field(default_factory=dict)
    least_difference: float = 0.0
    holdout_metric: str | None = None
    baselines: tuple[str, ...] = (BICUBIC,)

    def __post_init__(self) -> None:
        _check_name("study", self.name)
        names = [ablation.name for ablation in (self.reference, *self.ablations)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"study {self.name}: ablation {', '.join(repeated)} is registered twice")
        for control in self.controls:
            if control not in names[1:]:
                raise unknown_name(f"control of study {self.name}", control, names[1:])
            if (kind := self.controls[control]) not in ("negative", "positive"):
                raise UsageError(f"study {self.name}: control {control} must be negative or positive, got {kind!r}")

    def ablation(self, name: str) -> Ablation:
        """The ablation (or the reference) of this name. Raises UsageError with the nearest names."""
        by_name = {ablation.name: ablation for ablation in (self.reference, *self.ablations)}
        if name not in by_name:
            raise unknown_name(f"ablation of study {self.name}", name, by_name)
        return by_name[name]


STUDIES: Registry[Study] = Registry("study")


def register(study: Study) -> Study:
    """Add a study to those that `megasr study` knows; a user's own module calls it as well.

    Raises:
        UsageError: the name is taken, or an ablation has no hypothesis.
    """
    if silent := [ablation.name for ablation in study.ablations if not ablation.hypothesis]:
        raise UsageError(f"study {study.name}: write down what is expected of {', '.join(silent)} (hypothesis)")
    return STUDIES.register(study.name, study)


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{kind} name {name!r}: use lower case letters, digits, '_', '+' and '-'")


def apply_changes(config: Config, ablation: Ablation) -> Config:
    """A copy of the nested config with the ablation's changes.

    Raises:
        UsageError: a changed path does not exist in the config (the nearest paths are named).
    """
    leaves = flatten(config)
    for path in ablation.changes:
        if not any(_inside(leaf, (path,)) for leaf in leaves):
            raise unknown_name(f"config path of ablation {ablation.name}", path, leaves)
    kept = {leaf: value for leaf, value in leaves.items() if not _inside(leaf, ablation.changes)}
    changed: Config = {}
    for path, value in (kept | dict(ablation.changes)).items():
        *sections, leaf = path.split(".")
        node = changed
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return changed


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config -> {dotted path: value}. Tuples become lists, so that YAML and Python values compare equal."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{path}.")
        else:
            leaves[path] = list(value) if isinstance(value, tuple) else value
    return leaves


def diff(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (before, after) of every leaf that differs; a leaf that one side lacks is None there."""
    old, new = flatten(before), flatten(after)
    paths = sorted(old.keys() | new.keys())
    return {path: (old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)}


def check_diff(ablation: Ablation, before: Config, after: Config) -> None:
    """Check that the ablation changed something, and nothing outside what it says it touches.

    Args:
        ablation: the change.
        before: resolved config of the study's reference.
        after: resolved config with the ablation applied.

    Raises:
        UsageError: the difference is empty or leaves `touches`.
    """
    changed = diff(before, after)
    if not changed:
        given = ", ".join(ablation.changes) or "no change given"
        raise UsageError(f"ablation {ablation.name!r} changes nothing ({given})")
    if outside := [path for path in changed if not _inside(path, ablation.touches)]:
        raise UsageError(f"ablation {ablation.name!r} also changes {', '.join(outside)}, which it does not touch")


def _inside(path: str, prefixes: Iterable[str]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)
