"""Trainings of a study: one for all runs that only sample differently, resumed where they were killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from ablations.launch.local import LocalExecutor, Slot
from ablations.plan import build, default_components, resolve
from ablations.registry import Study, apply_changes, change
from ablations.results import CHECKPOINT, METRICS_FILE, RESTORED_FILE, TRAINING_FILE, StudyResult
from ablations.runner import open_study
from ablations.study_page import learning_curves
from megasr.errors import MegaSRError, UsageError
from megasr.files import locked_folder
from megasr.training.checkpoint import read_checkpoint
from tests.helpers.tiny_study import (
    FAST,
    TINY_SAMPLING,
    RankModule,
    TinyModule,
    run_tiny,
    tiny_components,
    write_recipe,
)

SHARDED = """
study: {name: sharded, seeds: [0]}
model:
  prior: tiny
  adapter: {text: false, controlnet: false, guidance: [canny], saft_width: 8}
  sampler: {num_steps: 3, start_fraction: 0.8}
data:
  class_path: PhotoDataModule
  init_args:
    {degradation: bicubic, crop_size_px: 32, eval_crop_size_px: 64, batch_size: 1, train_samples: 8, eval_samples: 2}
trainer:
  max_steps: 2
  accelerator: cpu
  devices: 2
  strategy: {class_path: megasr.training.sharding.ShardedStrategy}
  callbacks: [{class_path: megasr.training.callbacks.EMA}]
"""


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def _run(folder: Path, **changes: object) -> StudyResult:
    return run_tiny(TINY_SAMPLING, folder, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        return _run(tmp_path_factory.mktemp("study"))


def _rows(result: StudyResult) -> dict[str, object]:
    return {run.run_id: run.rows for run in result.runs}


def test_runs_that_sample_differently_share_a_training(finished: StudyResult) -> None:
    checkpoints = list(finished.output.rglob(CHECKPOINT))
    assert [path.parent.name for path in sorted(checkpoints)] == [run.run_id for run in finished.of("as-it-is")]
    assert len(finished.runs) == 1 + 2 * 3
    means = {run.summary["psnr_y"] for run in finished.runs if run.seed == 0}
    assert len(means) == 3  # each samples in its own way
    assert {run.steps for run in finished.runs if run.seed is not None} == {2}
    assert not list(finished.output.rglob("resume"))


def test_a_lost_evaluation_is_made_again_without_training(
    finished: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.output, tmp_path / "out")
    for name in ("as-it-is", "dark"):
        (tmp_path / "out" / finished.of(name)[1].run_id / METRICS_FILE).unlink()
    monkeypatch.setattr("ablations.execute.train", None)
    again = _run(tmp_path)
    assert len(again.reused) == 5
    assert _rows(again) == _rows(finished)


def test_a_training_of_another_recipe_is_not_taken(finished: StudyResult, tmp_path: Path) -> None:
    shutil.copytree(finished.output, tmp_path / "out")
    host = tmp_path / "out" / finished.of("as-it-is")[0].run_id
    stored = json.loads((host / TRAINING_FILE).read_text())
    (host / TRAINING_FILE).write_text(json.dumps(stored | {"fingerprint": "of another"}))
    for file in (METRICS_FILE, RESTORED_FILE):
        (host / file).unlink()
    again = _run(tmp_path)
    assert json.loads((host / TRAINING_FILE).read_text())["fingerprint"] == stored["fingerprint"]
    assert _rows(again) == _rows(finished)


def test_a_killed_training_goes_on_and_ends_in_the_same_bits(
    finished: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "calm").mkdir()
    calm = _run(tmp_path / "calm", steps=6)
    monkeypatch.setattr("ablations.train.SAVE_EVERY_N_STEPS", 2)
    done = TinyModule.on_train_batch_end

    def killed(self: TinyModule, *arguments: object) -> None:
        mark = tmp_path / f"{self.trainer.global_step}"
        if self.trainer.global_step in (3, 5) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        done(self, *arguments)

    monkeypatch.setattr(TinyModule, "on_train_batch_end", killed)
    (tmp_path / "killed").mkdir()
    disturbed = _run(tmp_path / "killed", steps=6, retries=2)
    assert (tmp_path / "3").exists() and (tmp_path / "5").exists()
    assert _rows(disturbed) == _rows(calm) != _rows(finished)
    host = disturbed.output / disturbed.of("as-it-is")[0].run_id
    losses = json.loads((host / TRAINING_FILE).read_text())["losses"]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]


def test_a_recipe_s_ema_is_what_is_measured(tmp_path: Path) -> None:
    weights = []
    for name, callbacks in (("plain", ""), ("averaged", "callbacks: [{class_path: megasr.training.callbacks.EMA}], ")):
        (tmp_path / name).mkdir()
        recipe = write_recipe(tmp_path / name)
        recipe.write_text(recipe.read_text().replace("trainer: {", f"trainer: {{{callbacks}"))
        result = run_tiny(TINY_SAMPLING, tmp_path / name, recipe=recipe, seeds=[0])
        assert not result.failed
        checkpoint = torch.load(result.output / result.of("as-it-is")[0].run_id / CHECKPOINT, weights_only=True)
        weights.append(checkpoint["state_dict"]["weight"])
    assert not torch.equal(*weights)


@pytest.mark.slow
def test_a_recipe_with_two_devices_is_trained_in_two_processes(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("devices: 1", "devices: 2, strategy: ddp"))
    components = replace(tiny_components(), module=RankModule)
    result = run_tiny(TINY_SAMPLING, tmp_path, recipe=recipe, seeds=[0], components=components)
    assert (len(result.runs), result.failed) == (4, {})
    host = result.output / result.of("as-it-is")[0].run_id
    assert (host / "rank0").exists() and (host / "rank1").exists()
    assert (host / CHECKPOINT).is_file() and not (host / "job.pickle").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_sharded_training_leaves_a_whole_averaged_adapter(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SHARDED)
    reference, twice = change("once", {"model.sampler.num_steps": 1}, "one step"), {"model.sampler.num_steps": 2}
    question = Study("sharded", "Do two steps help?", reference, (change("twice", twice, "two"),), "psnr_y")
    result = open_study(question, recipe, tmp_path / "out", protocol=FAST).run(LocalExecutor([Slot("cpu0", 1)], 0))
    assert (len(result.runs), result.failed) == (3, {})
    saved = read_checkpoint(result.output / result.of("once")[0].run_id / CHECKPOINT)["state_dict"]
    config = resolve(
        apply_changes({k: v for k, v in yaml.safe_load(SHARDED).items() if k != "study"}, reference),
        default_components(),
    )
    module = build(default_components(), {"model": config["model"]}).model
    trained = {name: value.shape for name, value in module.named_parameters() if value.requires_grad}
    assert {name: value.shape for name, value in saved.items()} == trained


def test_two_drivers_in_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megasr.files._LOCK_WAIT_S", 0.1)
    with locked_folder(tmp_path / "out"), pytest.raises(MegaSRError, match="another process"):
        _run(tmp_path)


def test_a_single_training_is_shown_as_it_was_logged(finished: StudyResult) -> None:
    curves, axis, _ = learning_curves(finished)
    assert list(curves) == ["as-it-is s0", "as-it-is s1"]
    assert axis == "training loss"
    assert len(curves) == 2


def test_a_folder_is_one_study_s(tmp_path: Path) -> None:
    study = open_study(
        TINY_SAMPLING, write_recipe(tmp_path), tmp_path / "out", protocol=FAST, components=tiny_components()
    )
    with study.claimed():
        pass
    other = replace(study, study=replace(TINY_SAMPLING, name="other"))
    with pytest.raises(UsageError, match=r"out holds study tiny; give other a folder of its own"), other.claimed():
        pass
