"""Study and recipe -> the list of runs, each with a stable id.

A recipe is YAML with the sections `model`, `data` and `trainer` as LightningCLI has them, and `study`, which only the
study reads. Types, defaults and the set of valid keys come from the constructors' signatures, through jsonargparse.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy  # jsonargparse writes into the lists that it parses
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ablations.declared import declare, declared_keys, is_declared
from ablations.identity import identify_weights
from ablations.registry import BICUBIC, Config, Study, apply_changes, check_diff, flatten
from megasr.configs import load_yaml
from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.evaluation.protocol import WEIGHT_FREE_V1, get_protocol
from megasr.files import at_home, file_sha256
from megasr.training.config import SAMPLED

# jsonargparse says what a class refuses in the middle of the union of types and of all values.
_REFUSED_CLASS = re.compile(
    r"Problem with given class_path '(?:data_pipelines\.datamodules\.)?([^']+)': (.+?) - Expected"
)
# The runner decides these itself, so a recipe may not set them.
_RUNNERS = {
    "logger", "default_root_dir", "enable_progress_bar", "enable_checkpointing", "enable_model_summary",
    "num_sanity_val_steps", "max_epochs", "max_time", "fast_dev_run",
}  # fmt: skip


@dataclass(frozen=True)
class Components:
    """The classes that a config builds: the LightningModule, the base class of the data modules, the Trainer."""

    module: type
    data: type
    trainer: type


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: `config` holds model, data and trainer with all defaults filled in; see Study for the rest.

    Attributes:
        text: of its file.
        declared: the study, where the recipe declares it (see ablations.declared).
        protocol: name of the protocol that its numbers are taken by.
        weights_dir: folder in which the weights of metrics are looked for first.
        evaluation: the evaluation sets as they are written (see ablations.evaluation); None is the recipe's data alone.
        holdout_metric: a metric that neither training nor the verdicts use; see Study.
        baselines: see Study; None where the recipe names none.
    """

    config: Config
    text: str
    study: str
    seeds: tuple[int, ...]
    least_difference: float = 0.0
    protocol: str = WEIGHT_FREE_V1.name
    weights_dir: Path | None = None
    declared: Study | None = None
    evaluation: Mapping[str, Any] | None = None
    holdout_metric: str | None = None
    baselines: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RunPlan:
    """One run of a study.

    Attributes:
        run_id: `<study>-<ablation>-s<seed>-<fingerprint>`, also the folder's name: equal settings give equal ids.
        study: name of the study.
        ablation: name of the ablation or baseline.
        seed: None for a baseline, which is not trained.
        config: resolved config of `megasr fit`, with the seed; of a baseline `data`, and `baseline` unless bicubic.
        fingerprint: hash of study, ablation, seed, config and frozen weights.
        training: hash of what the training depends on: runs that differ only in model.sampler share one. The
            fingerprint of a baseline, which shares none.
    """

    run_id: str
    study: str
    ablation: str
    seed: int | None
    config: Config
    fingerprint: str
    training: str = ""

    @property
    def max_steps(self) -> int:
        """Training steps of this run; 0 for a baseline."""
        return 0 if self.seed is None else int(self.config["trainer"]["max_steps"])

    @property
    def guidance(self) -> tuple[str, ...]:
        """Names of the guidance types of this run."""
        return () if self.seed is None else tuple(self.config["model"]["adapter"]["guidance"])

    @property
    def processes(self) -> int:
        """How many devices the recipe's trainer asks for on a node; "auto" and -1 are the one of the slot."""
        devices: Any = self.config["trainer"].get("devices") if self.seed is not None else None
        if isinstance(devices, str) and "," in devices:
            devices = devices.split(",")
        if isinstance(devices, list):
            return len(devices)
        return int(devices) if str(devices).isdigit() else 1


def default_components() -> Components:
    """The project's own classes. Importing them takes seconds."""
    import lightning

    from data_pipelines.datamodules import SRDataModule
    from megasr.training.module import MegaSRModule

    return Components(module=MegaSRModule, data=SRDataModule, trainer=lightning.Trainer)


@cache  # reading the signatures takes longer than everything else in a plan
def build_parser(components: Components, sections: tuple[str, ...] = ("model", "data", "trainer")) -> Any:
    """The jsonargparse parser over the sections of a config."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    for section in sections:
        if section == "data":
            parser.add_subclass_arguments(components.data, section, required=True)
        elif section == "model":
            parser.add_class_arguments(components.module, section)
        else:
            parser.add_class_arguments(components.trainer, section, skip=_RUNNERS, instantiate=False)
    return parser


def build(components: Components, config: Mapping[str, Any]) -> Any:
    """Namespace with `model` and `data` built from their sections of a config, and `trainer`, its arguments.

    Raises:
        UsageError, MegaSRError: as the classes, without what jsonargparse puts around them.
    """
    sections = tuple(section for section in ("model", "data", "trainer") if section in config)
    parser = build_parser(components, sections)
    try:
        return parser.instantiate(parser.parse_object(deepcopy({section: config[section] for section in sections})))
    except ValueError as error:
        if isinstance(error.__cause__, UsageError | MegaSRError):
            raise error.__cause__ from None
        raise


def resolve(config: Mapping[str, Any], components: Components) -> Config:
    """Check a nested config, of all sections or of data alone, against the constructors and fill in the defaults.

    Raises:
        UsageError: unknown key or wrong type; the message names the path.
    """
    parser = build_parser(components, ("data",)) if config.keys() == {"data"} else build_parser(components)
    try:
        return json.loads(parser.dump(parser.parse_object(deepcopy(dict(config))), format="json", skip_none=False))
    except Exception as error:  # jsonargparse raises several kinds
        message = " ".join(str(error).split())
        refused = _REFUSED_CLASS.search(message)
        raise UsageError(": ".join(refused.groups()) if refused else f"config: {message}") from error


def read_recipe(path: Path, components: Components, steps: int | None = None) -> Recipe:
    """Read and resolve the recipe of a study; `steps` replaces trainer.max_steps.

    Raises:
        UsageError: no such file, not YAML, unknown keys, or no positive trainer.max_steps.
    """
    import yaml

    from data_pipelines.data_module import choose_crop

    try:
        raw = load_yaml(text := path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"cannot read recipe {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("study"), dict):
        raise UsageError(f"{path}: a recipe has the sections study, model, data and trainer")
    section = _read_study_section(path, raw.pop("study"))
    if steps is not None:
        raw["trainer"] = {**raw.get("trainer", {}), "max_steps": steps}
    config = resolve(raw, components)
    if "prior" in config["model"]:  # the components may be others
        choose_crop(config["data"]["init_args"], config["model"]["prior"])
    if int(config["trainer"].get("max_steps", -1)) < 1:
        raise UsageError(f"{path}: trainer.max_steps must be 1 or more: only runs of equal steps are compared")
    return Recipe(config, text, **section)


def plan_runs(
    study: Study, recipe: Recipe, components: Components, seeds: Sequence[int] | None = None
) -> list[RunPlan]:
    """Bicubic, the other baselines, then for every seed the reference and every ablation (whole seeds first).

    Raises:
        UsageError: an ablation's difference is empty or outside what it touches, two ablations are the same, seeds are
            missing or repeated, or a baseline is unknown, of another scale, or has the name of another row.
        MegaSRError: weights are not on this machine; those of baselines are all named.
    """
    seeds = recipe.seeds if seeds is None else tuple(seeds)
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"seeds must be distinct and at least one, got {list(seeds)}")
    reference = resolve(apply_changes(recipe.config, study.reference), components)
    configs = {study.reference.name: reference}
    for ablation in study.ablations:
        configs[ablation.name] = resolve(apply_changes(reference, ablation), components)
        check_diff(ablation, reference, configs[ablation.name])
    _check_distinct(configs)
    weights = {name: identify_weights(config["model"]) for name, config in configs.items()}  # no seed changes them
    runs = [
        plan_run(study.name, name, seed, config, weights[name]) for seed in seeds for name, config in configs.items()
    ]
    return [*_plan_baselines(study, reference["data"], configs), *runs]


def baseline_name(baseline: str) -> str:
    """What tables and folders call a baseline: its name, or that of its file in the letters that names may have."""
    path = Path(baseline)
    return baseline if not path.suffix else re.sub(r"[^a-z0-9_+-]", "-", path.stem.lower())


def _plan_baselines(study: Study, data: Config, names: Collection[str]) -> list[RunPlan]:
    """See plan_runs; `names` are those of the other rows."""
    from megasr.guidance.extractors import find_checkpoint
    from megasr.inference.baselines import NAMED, check_scale, is_baseline

    plans, lacking = list[RunPlan](), list[str]()
    factor = data["init_args"].get("scale_factor")
    for baseline in dict.fromkeys((BICUBIC, *study.baselines)):
        if not is_baseline(baseline):
            raise UsageError(f"study.baselines: {unknown_name('baseline', baseline, NAMED)} (or a .pth of an RRDBNet)")
        name = baseline_name(baseline)
        if name in {*names, *(plan.ablation for plan in plans)}:
            raise UsageError(f"study {study.name}: baseline {baseline} and another row are both called {name}")
        if baseline == BICUBIC:
            plans.append(plan_run(study.name, name, None, {"data": data}))
            continue
        if factor is not None:
            check_scale(f"study.baselines: {baseline}", factor)
        try:
            weights = {"baseline": file_sha256(find_checkpoint(baseline))[:12]}
        except MegaSRError as error:
            lacking.append(str(error))
            continue
        plans.append(plan_run(study.name, name, None, {"data": data, "baseline": baseline}, weights))
    if lacking:
        raise MegaSRError(f"weights of baselines are missing: {'; '.join(lacking)}")
    return plans


_STUDY_OPTIONS = ("least_difference", "protocol", "weights_dir", "evaluation", "holdout_metric", "baselines")


def _read_study_section(path: Path, section: dict[str, Any]) -> dict[str, Any]:
    own = set(declared_keys())
    for key in section.keys() - {"name", "seeds", *_STUDY_OPTIONS} - own:
        raise unknown_name(f"key of study in {path}", str(key), ("name", "seeds", *_STUDY_OPTIONS, *declared_keys()))
    if section.keys() - set(_STUDY_OPTIONS) - own != {"name", "seeds"}:
        raise UsageError(
            f"{path}: section study has the keys name and seeds, and where needed {', '.join(_STUDY_OPTIONS)}; got "
            f"{', '.join(map(str, section))}"
        )
    seeds = section["seeds"]
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise UsageError(f"{path}: study.seeds must be a list of integers, got {seeds!r}")
    least = section.get("least_difference", 0)
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least < math.inf:
        raise UsageError(f"{path}: study.least_difference must be a number of 0 or more, got {least!r}")
    folder, holdout = section.get("weights_dir"), section.get("holdout_metric")
    if holdout is not None and not isinstance(holdout, str):
        raise UsageError(f"{path}: study.holdout_metric must be the name of a metric, got {holdout!r}")
    baselines = section.get("baselines")
    if baselines is not None and not (isinstance(baselines, list) and all(isinstance(one, str) for one in baselines)):
        raise UsageError(f"{path}: study.baselines must be a list of names or files, got {baselines!r}")
    return {
        "study": str(section["name"]),
        "seeds": tuple(seeds),
        "least_difference": float(least),
        "protocol": get_protocol(str(section.get("protocol", WEIGHT_FREE_V1.name))).name,
        "weights_dir": None if folder is None else Path(at_home(str(folder))),
        "declared": declare(section, path) if is_declared(section) else None,
        "evaluation": section.get("evaluation"),
        "holdout_metric": holdout,
        "baselines": None if baselines is None else tuple(map(at_home, baselines)),
    }


def _check_distinct(configs: Mapping[str, Config]) -> None:
    """Two ablations of one config would be one answer under two names."""
    seen: dict[str, str] = {}
    for name, config in configs.items():
        other = seen.setdefault(json.dumps(present(config), sort_keys=True), name)
        if other != name:
            raise UsageError(f"ablations {other!r} and {name!r} give the same config: leave one out")


def plan_run(
    study: str, ablation: str, seed: int | None, config: Config, weights: Mapping[str, str | None] | None = None
) -> RunPlan:
    """Plan one run of a resolved config; with seed None it is a baseline.

    Args:
        study, ablation, seed, config: see RunPlan.
        weights: what identify_weights says of the config; None asks it.

    Raises:
        MegaSRError: weights that the config names are not on this machine.
    """
    if seed is not None:
        # Everything random follows the run's seed: model, noise and the order of the data.
        data = {**config["data"], "init_args": {**config["data"]["init_args"], "seed": seed}}
        config = {**config, "model": {**config["model"], "seed": seed}, "data": data}
    if weights is None:
        weights = identify_weights(config["model"]) if "model" in config else {}
    fingerprint = _digest([study, ablation, seed, present(config), weights])
    training = fingerprint
    if seed is not None:
        model = {name: value for name, value in config["model"].items() if name != "sampler"} | trained_sampler(config)
        training = _digest([present({**config, "model": model}), weights])
    run_id = "-".join([study, ablation, *([] if seed is None else [f"s{seed}"]), fingerprint[:8]])
    return RunPlan(run_id, study, ablation, seed, config, fingerprint, training)


def trained_sampler(config: Config) -> dict[str, Any]:
    """The part of the section sampler that the training depends on: none, unless the loss is of what it makes."""
    model = config["model"]
    if (model.get("objective") or {}).get("kind") is None:
        return {}
    return {"sampler": {name: model["sampler"][name] for name in SAMPLED}}


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=6).hexdigest()


def present(config: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves that are not None: a new option that is off by default changes no older run's id."""
    return {path: value for path, value in flatten(config).items() if value is not None}
