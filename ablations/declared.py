"""A study that its recipe declares: a user's own question in one YAML file, without a line of Python.

    study:
      name: my_selection
      question: Which maps help on my photographs?
      primary_metric: lpips
      protocol: paired-v1
      seeds: [0, 1, 2]
      combinations: {of: [hed, depth, segmentation]}   # every combination of guidance types, against none
      axes: {model.adapter.gate: [linear, channel]}    # a full grid, against its first values
      ablations:                                       # named changes, each with what is expected of it
        wide: {changes: {model.adapter.saft_width: 256}, expected: "Better: more room for each map."}
      controls: {noise: negative}
      baselines: [bicubic, realesrgan-x4plus]          # not trained, beside the runs in every table; see registry.Study

Paths are those of the recipe's sections model, data and trainer; what a change does not name is as the recipe has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

from ablations.registry import Ablation, Study
from megasr.errors import UsageError, unknown_name

GUIDANCE = "model.adapter.guidance"
_OWN = ("question", "primary_metric", "reference", "combinations", "axes", "ablations", "controls")
_PARTS = {
    "reference": ("name", "changes", "description"),
    "combinations": ("of", "path", "sizes"),
    "ablations": ("changes", "description", "expected", "combination"),
}
_REFERENCE = "reference"


def is_declared(section: Mapping[str, Any]) -> bool:
    """Whether the section study of a recipe declares the study, and does not only name one."""
    return bool(section.keys() & set(_OWN))


def declared_keys() -> tuple[str, ...]:
    """Keys of the section study that declare one."""
    return _OWN


def declare(section: Mapping[str, Any], path: Path) -> Study:
    """The study that a recipe's section `study` declares.

    Raises:
        UsageError: a key is unknown or missing, or has another kind of value; names the file and the key.
    """
    for key in ("question", "primary_metric"):
        if not isinstance(section.get(key), str):
            raise UsageError(f"{path}: study.{key} must be text, got {section.get(key)!r}")
    reference = _part(section, "reference", path)
    name = str(reference.get("name", "none" if "combinations" in section else _REFERENCE))
    changes = dict(_mapping(reference.get("changes", {}), "reference.changes", path))
    found: list[Ablation] = []
    if "combinations" in section:
        asked = _part(section, "combinations", path)
        field, types = str(asked.get("path", GUIDANCE)), _list(asked.get("of"), "combinations.of", path)
        changes.setdefault(field, [])
        found += _combinations(field, types, asked.get("sizes"), path)
    if "axes" in section:
        axes = _mapping(section["axes"], "axes", path)
        for key, values in axes.items():
            if any(value in values[:place] for place, value in enumerate(_list(values, f"axes.{key}", path))):
                raise UsageError(f"{path}: study.axes.{key} names a value twice: {values}")
        first, *others = _grid(axes)
        changes = first | changes
        found += [_ablation(_name_of(point, axes), point) for point in others]
    for key, entry in _mapping(section.get("ablations", {}), "ablations", path).items():
        given = _known(_mapping(entry, f"ablations.{key}", path), "ablations", f"ablations.{key}", path)
        own = _mapping(given.get("changes"), f"ablations.{key}.changes", path)
        words = str(given.get("description", "")), str(given.get("expected", ""))
        found.append(_ablation(str(key), own, *words, combination=given.get("combination")))
    if not found:
        raise UsageError(f"{path}: study {section['name']} compares nothing: give combinations, axes or ablations")
    described = str(reference.get("description", "as the recipe has it"))
    combination: Sequence[str] | None = () if any(one.combination is not None for one in found) else None
    return Study(
        name=str(section["name"]),
        question=section["question"],
        reference=_ablation(name, changes, described, combination=combination),
        ablations=tuple(found),
        primary_metric=section["primary_metric"],
        controls=dict(_mapping(section.get("controls", {}), "controls", path)),
    )


def _combinations(field: str, types: Sequence[str], sizes: Any, path: Path) -> Iterator[Ablation]:
    """Every combination of types, of all sizes or of those asked for, small ones first."""
    wanted = range(1, len(types) + 1) if sizes is None else _list(sizes, "combinations.sizes", path)
    for size in wanted:
        if type(size) is not int or not 1 <= size <= len(types):
            raise UsageError(f"{path}: study.combinations.sizes must be from 1 to {len(types)}, got {size!r}")
        for chosen in combinations(types, size):
            yield _ablation("+".join(chosen), {field: list(chosen)}, " and ".join(chosen), combination=chosen)


def _grid(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All points, the first values first."""
    return [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]


def _name_of(point: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> str:
    """What differs from the first values: `gate-channel_saft_width-64`."""
    changed = {key: value for key, value in point.items() if value != axes[key][0]}
    words = (f"{key.rpartition('.')[2]}-{_word(value)}" for key, value in changed.items())
    return "_".join(words)


def _word(value: Any) -> str:
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(letter if letter.isalnum() or letter in "+-" else "-" for letter in text.lower()) or "none"


def _ablation(
    name: str,
    changes: Mapping[str, Any],
    description: str = "",
    expected: str = "",
    combination: Sequence[str] | None = None,
) -> Ablation:
    said = description or ", ".join(f"{key} {value}" for key, value in changes.items())
    types = None if combination is None else tuple(combination)
    return Ablation(name, dict(changes), tuple(changes), said, types, expected)


def _part(section: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    return _known(_mapping(section.get(name, {}), name, path), name, name, path)


def _known(given: Mapping[str, Any], kind: str, name: str, path: Path) -> Mapping[str, Any]:
    for key in given:
        if key not in _PARTS[kind]:
            raise unknown_name(f"key of study.{name} in {path}", str(key), _PARTS[kind])
    return given


def _mapping(value: Any, name: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{path}: study.{name} must be keys with values, got {value!r}")
    return value


def _list(value: Any, name: str, path: Path) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{path}: study.{name} must be a list, got {value!r}")
    return value
