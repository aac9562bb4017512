"""Ablations and studies: named config changes, each declaring what it touches, grouped by the question they answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from megasr.errors import UsageError, unknown_name

Control = Literal["negative", "positive"]
Config = dict[str, Any]  # nested: section -> field -> value, as the recipe's YAML has it
SAMPLING = "model.sampler"  # what is inside changes how is restored, and no weight
_NAME = re.compile(r"[a-z0-9][a-z0-9_+-]*")  # names become folders and run ids


@dataclass(frozen=True)
class Ablation:
    """A named change of a config.

    Attributes:
        name: lower case; becomes part of the run id.
        changes: dotted config path -> new value ("model.adapter.guidance" -> ("canny",)). A path of a section replaces
            all of it.
        touches: dotted paths (or prefixes of paths) inside which every difference must lie.
        description: one line for the report.
        combination: the guidance types that the change stands for, () for none; None when it is about something else.
            What each type is worth is worked out from these.
        hypothesis: one sentence, written before the runs: what is expected of it against the reference, and why.
    """

    name: str
    changes: Mapping[str, Any]
    touches: tuple[str, ...]
    description: str
    combination: tuple[str, ...] | None = None
    hypothesis: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"ablation name {self.name!r}: use lower case letters, digits, '_', '+' and '-'")
        object.__setattr__(self, "changes", MappingProxyType(dict(self.changes)))

    @property
    def retrains(self) -> bool:
        """Whether it needs a training of its own: it changes more than how is sampled (see RunPlan.training)."""
        return not all(_inside(path, (SAMPLING,)) for path in self.changes)


@dataclass(frozen=True)
class Study:
    """A question over many runs.

    Attributes:
        name: becomes part of the run ids.
        question: what the study answers, as one sentence.
        reference: what every ablation is compared with; its changes are applied to the recipe before all others.
        ablations: the alternatives, each a change of the reference.
        primary_metric: the metric of the protocol that decides, named before any run; all others are exploratory.
        least_difference: smallest difference in the primary metric that is called one: what the same trainings on
            another machine move differences by, as the study's recipe says (`study.least_difference`); 0 where that has
            not been measured.
        controls: ablation name -> "negative" (must not help) or "positive" (must help). A study whose controls
            misbehave is reported as not trustworthy.
    """

    name: str
    question: str
    reference: Ablation
    ablations: tuple[Ablation, ...]
    primary_metric: str
    controls: Mapping[str, Control] = field(default_factory=dict)
    least_difference: float = 0.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"study name {self.name!r}: use lower case letters, digits, '_', '+' and '-'")
        names = [ablation.name for ablation in (self.reference, *self.ablations)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"study {self.name}: ablation {', '.join(repeated)} is registered twice")
        for control in self.controls:
            if control not in names[1:]:
                raise unknown_name(f"control of study {self.name}", control, names[1:])
        object.__setattr__(self, "controls", MappingProxyType(dict(self.controls)))

    def ablation(self, name: str) -> Ablation:
        """The ablation (or the reference) of this name. Raises UsageError with the nearest names."""
        by_name = {ablation.name: ablation for ablation in (self.reference, *self.ablations)}
        if name not in by_name:
            raise unknown_name(f"ablation of study {self.name}", name, by_name)
        return by_name[name]


REGISTERED: dict[str, Study] = {}  # by name; ablations.studies reads it


def register(study: Study) -> Study:
    """Add a study to the registry.

    Raises:
        UsageError: the name is taken, or an ablation has no hypothesis.
    """
    if study.name in REGISTERED:
        raise UsageError(f"study {study.name!r} is registered twice")
    if silent := [ablation.name for ablation in study.ablations if not ablation.hypothesis]:
        raise UsageError(f"study {study.name}: write down what is expected of {', '.join(silent)} (hypothesis)")
    REGISTERED[study.name] = study
    return study


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
