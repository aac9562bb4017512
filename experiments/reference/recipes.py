"""What is measured: a recipe of one run, and fingerprints that tell whether two measurements are of the same thing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.identity import identify_weights
from ablations.plan import BICUBIC, Components, RunPlan, plan_run, read_run_recipe
from ablations.registry import Config, flatten
from megasr.errors import unknown_name
from megasr.evaluation.protocol import Protocol

RECIPES = Path(__file__).parents[1]
_STUDY = "reference"  # the first part of run ids


@dataclass(frozen=True)
class Recipe:
    """A recipe of one run, resolved.

    Attributes:
        name: path below the folder of recipes, without suffix: "tiny/megasr".
        config: sections model, data and trainer with all defaults filled in, without seeds.
        fingerprints: of the recipe (the resolved config), the prior, the protocol and, where there are any, the vision
            tower, the checkpoint to start from, the tagger and the extractors. Numbers belong together only when all
            are equal. The code is not part of it.
    """

    name: str
    config: Config
    fingerprints: Mapping[str, str | None]

    def plan(self, seed: int) -> RunPlan:
        """The run of one seed."""
        return plan_run(_STUDY, self.name.replace("/", "-"), seed, self.config)

    def baseline(self) -> RunPlan:
        """Bicubic on the evaluation set of this recipe: the same run for all recipes of the same data."""
        return plan_run(_STUDY, BICUBIC, None, {"data": self.config["data"]})


def load_recipe(name: str, folder: Path, components: Components, protocol: Protocol) -> Recipe:
    """Read and resolve `folder/<name>.yaml`.

    Raises:
        UsageError: there is no such recipe, it has other sections than model, data and trainer, or wrong keys.
        MegaSRError: weights that it names are not on this machine.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = (found.relative_to(folder).with_suffix("").as_posix() for found in folder.rglob("*.yaml"))
        raise unknown_name(f"recipe of {folder}", name, known)
    config = _without_seeds(read_run_recipe(path, components))
    fingerprints = {"recipe": digest_of(flatten(config)), "protocol": protocol.fingerprint}
    return Recipe(name, config, {**fingerprints, **identify_weights(config["model"])})


def digest_of(leaves: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of a flat config. None is a part that is off: one that is new changes no older recipe."""
    present = {path: value for path, value in leaves.items() if value is not None}
    return hashlib.blake2b(json.dumps(present, sort_keys=True).encode(), digest_size=6).hexdigest()


def _without_seeds(config: Config) -> Config:
    model = {key: value for key, value in config["model"].items() if key != "seed"}
    arguments = {key: value for key, value in config["data"]["init_args"].items() if key != "seed"}
    return {**config, "model": model, "data": {**config["data"], "init_args": arguments}}
