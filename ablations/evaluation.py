"""The images that the runs of a study are measured on: named sets, each with its data and its protocol.

    study:
      evaluation:
        scenes: {}                                                     # the evaluation images of the recipe's data
        photographs: {data: images, root: photographs, degradation: realesrgan_strong, protocol: paired-v1, limit: 40}
        drealsr: {data: drealsr, root: testsets}                       # a benchmark, under its own protocol

`data` is `recipe`, `images` (ImagesDataModule), a benchmark or a data module; what a set has beside data, protocol and
limit are the arguments of its data module. Without `study.evaluation` the one set is that of the recipe.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc import locate
from typing import Any

from ablations.plan import Components, RunPlan, build, present, resolve
from ablations.registry import Config
from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.evaluation.intervals import photograph
from megasr.evaluation.protocol import MetricSpec, Protocol, get_protocol

RECIPE = "recipe"
_IMAGES = "images"
_SHOWN = 5
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class EvaluationSet:
    """Images and how they are measured.

    Attributes:
        name: what tables and metrics call it.
        protocol: how its numbers are taken.
        data: resolved `data` section; None is the recipe's own, with the changes of each run.
        limit: images at most; None takes all.
        kind: what `data` names.
        has_hq: its images have ground truth.
        absent: optional metrics of the protocol that are not taken, for their weights are not on this machine.
    """

    name: str
    protocol: Protocol
    data: Config | None = None
    limit: int | None = None
    kind: str = RECIPE
    has_hq: bool = True
    absent: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[MetricSpec, ...]:
        """The metrics per image that can be taken of it; FID and KID, of a whole set, are not compared by a study."""
        return tuple(m for m in self.protocol.metrics if not m.of_set and (self.has_hq or not m.needs_hq))

    @property
    def identity(self) -> str:
        """What its images are, whatever its name and protocol: images that were restored for one serve the other."""
        if self.data is None and self.limit is None:
            return RECIPE
        content = json.dumps([present(self.data or {}), self.limit], sort_keys=True)
        return f"{self.kind.lower()}-{hashlib.blake2b(content.encode(), digest_size=4).hexdigest()}"

    def folder(self, run: Path) -> Path:
        """Where the images and numbers of a run lie, in the folder of the run."""
        return run if self.identity == RECIPE else run / "sets" / self.identity


def study_metrics(sets: Sequence[EvaluationSet]) -> dict[str, tuple[EvaluationSet, MetricSpec]]:
    """Name in the study -> set and metric, which has that name: `<set>/<metric>` where there are several sets."""
    named = [(one, metric, study_name(sets, one, metric.name)) for one in sets for metric in one.metrics]
    return {name: (one, replace(metric, name=name)) for one, metric, name in named}


def study_name(sets: Sequence[EvaluationSet], one: EvaluationSet, metric: str) -> str:
    """What a study calls a metric of one of its sets."""
    return metric if len(sets) == 1 else f"{one.name}/{metric}"


def find_metric(sets: Sequence[EvaluationSet], name: str, key: str = "primary_metric") -> str:
    """The name in the study of `<set>/<metric>`, or of a metric of the first set; `key` of the study is for errors.

    Raises:
        UsageError: no protocol measures it.
    """
    known = study_metrics(sets)
    first, _, bare = name.rpartition("/")
    alone = bare if len(sets) == 1 and first == sets[0].name else name
    for candidate in (alone, f"{sets[0].name}/{name}"):
        if candidate in known:
            return candidate
    protocols = ", ".join(dict.fromkeys(one.protocol.name for one in sets))
    unknown = unknown_name(f"metric of protocol {protocols}", name, {*known, *(m.name for m in sets[0].metrics)})
    raise UsageError(f"study.{key}: {unknown}")


def take_present(
    sets: Sequence[EvaluationSet], weights_dir: Path | None, needed: Collection[str | None]
) -> tuple[EvaluationSet, ...]:
    """The sets without optional metrics whose weights are not on this machine; `needed` (names in the study) stay."""
    from megasr.evaluation.metrics import without_missing

    def present(one: EvaluationSet) -> EvaluationSet:
        named = [metric for metric in one.protocol.metric_names if study_name(sets, one, metric) in needed]
        kept = without_missing(one.protocol, weights_dir, named)
        if not kept.metrics:  # check_sets says what is missing
            return one
        absent = tuple(name for name in one.protocol.metric_names if name not in kept.metric_names)
        return replace(one, protocol=kept, absent=absent)

    return tuple(map(present, sets))


def read_sets(
    section: Mapping[str, Any] | None, protocol: Protocol, components: Components, path: Path
) -> tuple[EvaluationSet, ...]:
    """The sets of a recipe's `study.evaluation`; None is the set of the recipe alone.

    Args:
        section: name -> keys and values.
        protocol: of sets that name none (a benchmark has its own).
        components: base class of the data modules.
        path: of the recipe, for errors.

    Raises:
        UsageError: a key, value, protocol or data module is unknown, or no metric can be taken of a set.
    """
    if section is None:
        return (EvaluationSet(RECIPE, protocol),)
    if not isinstance(section, Mapping) or not section:
        raise UsageError(f"{path}: study.evaluation must be sets by name, got {section!r}")
    return tuple(_read_set(str(name), given, protocol, components, path) for name, given in section.items())


def _read_set(name: str, given: Any, protocol: Protocol, components: Components, path: Path) -> EvaluationSet:
    where = f"{path}: study.evaluation.{name}"
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}: use lower case letters, digits, '_' and '-'")
    if not isinstance(given, Mapping):
        raise UsageError(f"{where} must be keys with values (data, protocol, limit), got {given!r}")
    arguments = dict(given)
    kind, own, limit = arguments.pop("data", RECIPE), arguments.pop("protocol", None), arguments.pop("limit", None)
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UsageError(f"{where}.limit must be 1 or more images, got {limit!r}")
    if kind == RECIPE:
        if arguments:
            raise UsageError(f"{where}: the recipe's data takes no {', '.join(arguments)}; name another data with it")
        data, has_hq, default = None, True, protocol
    else:
        data, has_hq, default = _read_data(str(kind), arguments, protocol, components, where)
    chosen = EvaluationSet(name, default if own is None else get_protocol(str(own)), data, limit, str(kind), has_hq)
    if not chosen.metrics:
        lacks = "" if has_hq else f", and {kind} has no hq"
        raise UsageError(f"{where}: no metric of {chosen.protocol.name} is taken image by image{lacks}: name another")
    return chosen


def _read_data(
    kind: str, arguments: Mapping[str, Any], protocol: Protocol, components: Components, where: str
) -> tuple[Config, bool, Protocol]:
    """(data section, whether it has hq, its protocol where none is named)."""
    from data_pipelines.benchmarks import BENCHMARKS
    from data_pipelines.datamodules import __all__ as known

    if benchmark := BENCHMARKS.get(kind):
        section = {"class_path": "BenchmarkDataModule", "init_args": {"benchmark": kind, **arguments}}
    elif kind == _IMAGES or kind in known or "." in kind or kind == components.data.__name__:
        section = {"class_path": "ImagesDataModule" if kind == _IMAGES else kind, "init_args": dict(arguments)}
    else:
        raise unknown_name(f"data of {where}", kind, [RECIPE, _IMAGES, *BENCHMARKS, *known])
    try:
        data = resolve({"data": section}, components)["data"]
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    if benchmark:
        return data, benchmark.has_hq, get_protocol(benchmark.protocol)
    return data, getattr(locate(data["class_path"]), "has_hq", True), protocol


def check_sources(sets: Sequence[EvaluationSet], plans: Sequence[RunPlan]) -> None:
    """Refuse runs that restore with maps of hq, on a set without hq. Raises UsageError with set, run and type."""
    from megasr.guidance.registry import resolve_guidance

    if not (lacking := [one.name for one in sets if not one.has_hq]):
        return
    for plan in plans:
        shown = (plan.config.get("model", {}).get("sampler") or {}).get("shown_guidance")
        for guidance in resolve_guidance(plan.guidance if shown is None else shown):
            if guidance.source != "lq":
                raise UsageError(
                    f"evaluation set {lacking[0]} has no hq, and {plan.ablation} restores with {guidance.name}, which "
                    f"needs {guidance.needs}: leave out one of the two, or give the set a study of its own"
                )


def open_set(one: EvaluationSet, recipe: Config, components: Components) -> Any:
    """The data module of a set, which gives its images as a validation set.

    Args:
        one: the set.
        recipe: `data` section of the run.
        components: classes that the section builds.

    Raises:
        UsageError, MegaSRError: as the data module, with the name of the set.
    """
    try:
        data = build(components, {"data": recipe if one.data is None else one.data}).data
    except (UsageError, MegaSRError) as error:
        raise error if one.data is None else type(error)(f"evaluation set {one.name}: {error}") from error
    if one.limit is not None:
        data.eval_samples = min(one.limit, getattr(data, "eval_samples", one.limit))
    data.setup("validate" if one.has_hq else "test")
    return data


def check_images(one: EvaluationSet, keys: Sequence[str], measured: Sequence[str]) -> None:
    """Refuse a set whose images are others than those that bicubic was measured on. Raises MegaSRError."""
    if differing := sorted(set(keys) ^ set(measured)):
        raise MegaSRError(
            f"evaluation set {one.name} has {len(keys)} images, and had {len(measured)} when bicubic was measured; "
            f"{len(differing)} are in one of the two alone: {', '.join(differing[:_SHOWN])}. Restore its folder, or "
            "name a folder or limit of its own for the images of today"
        )


def check_sets(
    sets: Sequence[EvaluationSet],
    recipe: Config,
    components: Components,
    weights_dir: Path | None,
    measured: Mapping[str, Sequence[str]],
) -> None:
    """Check what can be checked before the first run: the folders of the sets, and the weights of all metrics.

    Args:
        sets: of the study.
        recipe: `data` section of the recipe.
        components: classes that it builds.
        weights_dir: where weights of metrics are looked for first.
        measured: name of a set -> its images when bicubic was measured.

    Raises:
        UsageError: images of a set are missing or do not fit, or it has another scale factor than the recipe.
        MegaSRError: weights are missing (every file is named, with where it can be had), or a set has other images now.
    """
    from megasr.evaluation.metrics import choose_metrics

    lacking: dict[str, str] = {}
    for one in sets:
        names = [metric.name for metric in one.metrics]
        lacking |= choose_metrics(one.protocol, names, has_hq=one.has_hq, weights_dir=weights_dir, missing="skip")[1]
    if lacking:
        raise MegaSRError(
            f"weights of metrics are missing: {'; '.join(f'{name} {reason}' for name, reason in lacking.items())}. Put "
            "the files into one folder and name it (study.weights_dir), or take a protocol without these metrics"
        )
    factor = recipe["init_args"].get("scale_factor")
    for one in sets:
        if one.data is None:
            if 1 in (one.limit, recipe["init_args"].get("eval_samples")):
                raise UsageError(f"evaluation set {one.name} has one image: intervals need two photographs or more")
            continue
        data = open_set(one, recipe, components)
        if factor is not None and data.scale_factor != factor:
            raise UsageError(
                f"evaluation set {one.name} has scale_factor {data.scale_factor}, the recipe's data {factor}"
            )
        if not hasattr(data, "eval_keys"):
            continue
        keys = data.eval_keys()
        if len({photograph(key) for key in keys}) < 2:
            raise UsageError(f"evaluation set {one.name} has images of one photograph: intervals need two or more")
        if one.name in measured:
            check_images(one, keys, measured[one.name])
