"""Every ablation of every study restores another image than its reference, on a small twin of its recipe.

The twins are trained by what trains the runs, a few steps at a large learning rate: adapters start as silent as zero.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ablations.plan import RunPlan, build, default_components, plan_runs, read_recipe
from ablations.results import read_training
from ablations.studies import studies
from ablations.train import load_adapter, train
from megasr import system as parts
from megasr.images import to_uint8
from tests.helpers.losses import load_random
from tests.helpers.recipes import cached_prior
from tests.helpers.sources import ROOT

SIDE_PX = 32
SMALL_DATA = {"crop_size_px": SIDE_PX, "eval_crop_size_px": SIDE_PX, "batch_size": 4, "train_samples": 16}
LOUD = {"learning_rate": 1.0e-2, "warmup_steps": 0, "decay_share": 0.0}


def recipe_of(study: str) -> Path:
    """The first recipe of a study."""
    paths = sorted((ROOT / "experiments").rglob("*.yaml"))
    return next(p for p in paths if yaml.safe_load(p.read_text()).get("study", {}).get("name") == study)


@dataclass
class Twin:
    """A study's recipe, small, with what has been trained and restored so far: studies share what is equal."""

    study: str
    folder: Path
    restored: dict[str, tuple[torch.Tensor, np.ndarray]] = field(default_factory=dict)  # by configuration

    @cached_property
    def plans(self) -> dict[str, RunPlan]:
        """Ablation -> its run."""
        raw = yaml.safe_load(recipe_of(self.study).read_text())
        data = raw["data"]["init_args"]
        data |= {"photos": None} if "photos" in data else {}  # those of `make photos` are not in the repository
        data |= SMALL_DATA | {"eval_samples": 1} | ({"pool": 1} if "pool" in data else {})
        raw["model"]["adapter"]["saft_width"] = 8
        raw["model"]["optimizer"] |= LOUD
        if self.study != "sampling":
            raw["model"]["sampler"]["num_steps"] = 1
        raw["trainer"] = {"max_steps": 2, "accelerator": "cpu", "devices": 1}
        path = self.folder / f"{self.study}.yaml"
        path.write_text(yaml.safe_dump(raw))
        recipe = read_recipe(path, default_components())
        return {run.ablation: run for run in plan_runs(studies()[self.study], recipe, default_components(), [0])}

    def restore(self, ablation: str) -> tuple[torch.Tensor, np.ndarray]:
        """Lq and sr (uint8) of the one evaluation image."""
        plan = self.plans[ablation]
        key = json.dumps(plan.config, sort_keys=True)
        if key not in self.restored:
            folder = self.folder / plan.training
            if read_training(plan, folder) is None:  # else it is that of an ablation that differs only in sampling
                train(plan, default_components(), folder, None, lambda step, loss: None)
            built = build(default_components(), {name: plan.config[name] for name in ("model", "data")})
            load_adapter(built.model, folder)
            built.data.setup("validate")
            (batch,) = built.data.val_dataloader()
            batch = built.data.on_after_batch_transfer(batch, 0)
            self.restored[key] = batch["lq"], to_uint8(built.model.eval().restore(batch))
        return self.restored[key]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twin]:
    folder, restored = tmp_path_factory.mktemp("twins"), dict[str, tuple[torch.Tensor, np.ndarray]]()
    return {name: Twin(name, folder, restored) for name in studies()}


@pytest.fixture(autouse=True)
def _one_prior_and_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "load_prior", cached_prior)
    monkeypatch.setattr(parts.FrozenParts, "perceptual", load_random)


@pytest.mark.parametrize(
    ("study", "ablation"), [(name, a.name) for name, study in studies().items() for a in study.ablations]
)
def test_an_ablation_restores_another_image_of_the_same_lq(twins: dict[str, Twin], study: str, ablation: str) -> None:
    reference_lq, reference = twins[study].restore(studies()[study].reference.name)
    lq, sr = twins[study].restore(ablation)
    assert torch.equal(lq, reference_lq)
    assert not np.array_equal(sr, reference)
    assert sr.std() > 1, "a restored image that is flat could not differ"


@pytest.mark.parametrize("study", sorted(studies()))
def test_no_two_ablations_of_a_study_restore_the_same_image(twins: dict[str, Twin], study: str) -> None:
    names: dict[bytes, list[str]] = {}
    for ablation in (studies()[study].reference, *studies()[study].ablations):
        names.setdefault(twins[study].restore(ablation.name)[1].tobytes(), []).append(ablation.name)
    assert [same for same in names.values() if len(same) > 1] == []


def test_the_same_ablation_restores_the_same_image(twins: dict[str, Twin], tmp_path: Path) -> None:
    expected = twins["fusion"].restore("residual")[1]
    again = Twin("fusion", tmp_path)
    assert np.array_equal(again.restore("residual")[1], expected)
    again.restored.clear()
    assert np.array_equal(again.restore("residual")[1], expected), "from its checkpoint"
