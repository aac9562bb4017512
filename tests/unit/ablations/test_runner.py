"""Studies on the stand-in model: files, reuse, failure, and the report of real runs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ablations.execute import execute_run
from ablations.page import StudyPage
from ablations.plan import BICUBIC, RunPlan
from ablations.record import RECIPE_FILE
from ablations.report import write_report
from ablations.results import METRICS_FILE, RunResult, StudyResult, read_losses
from ablations.runner import open_study
from ablations.study_page import learning_curves
from ablations.tracking import Tracker
from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.protocol import PROTOCOLS, WEIGHT_FREE_V1, Protocol, get_protocol
from megasr.images import read_image
from tests.helpers.tiny_study import (
    FAST,
    TINY_STUDY,
    TinyAdapter,
    TinyData,
    TinyModule,
    TinySampler,
    run_tiny,
    tiny_components,
    write_recipe,
)


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def _run(folder: Path, **changes: object) -> StudyResult:
    return run_tiny(TINY_STUDY, folder, **{"seeds": [0]} | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        return _run(folder)


@pytest.fixture
def copy(finished: StudyResult, tmp_path: Path) -> Path:
    """A folder with the finished study in `out`."""
    shutil.copytree(finished.output, tmp_path / "out")
    return tmp_path


def test_every_run_leaves_its_files(finished: StudyResult) -> None:
    assert finished.reused == ()
    assert len(finished.runs) == 6
    for run in finished.runs:
        folder = finished.output / run.run_id
        (stored,) = json.loads((folder / METRICS_FILE).read_text()).values()
        assert stored["protocol"]["fingerprint"] == FAST.fingerprint
        assert torch.__version__.startswith(stored["versions"]["torch"])
        assert stored["measured_on"] == "cpu"
        assert [row["key"] for row in stored["rows"]] == [f"photo{p}/0-{c}" for p in range(3) for c in range(2)]
        assert read_image(folder / "sr" / "photo1" / "0-0.png").shape == (64, 64, 3)
        if run.ablation != BICUBIC:
            assert (run.steps, run.device) == (2, "cpu")
            assert (folder / "config.yaml").is_file()
            kept = torch.load(folder / "adapter.ckpt", weights_only=True)
            assert kept["global_step"] == 2
            assert "optimizer_states" not in kept
    assert not list(finished.output.rglob("*.part"))
    lq = finished.output / finished.of(BICUBIC)[0].run_id / "lq"
    assert read_image(lq / "photo0" / "0-1.png").shape == (16, 16, 3)


def test_the_written_config_runs_again_as_a_lightning_config(finished: StudyResult) -> None:
    import yaml

    run = finished.of("canny")[0]
    config = yaml.safe_load((finished.output / run.run_id / "config.yaml").read_text())
    assert config["model"]["adapter"]["guidance"] == ["canny"]
    assert set(config) == {"model", "data", "trainer"}


def test_finished_runs_are_used_again(copy: Path, finished: StudyResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.execute.execute_run", None)
    monkeypatch.setattr("ablations.execute.execute_baseline", None)
    again = _run(copy)
    assert len(again.reused) == 6
    assert again.runs == finished.runs


def test_only_what_is_missing_is_run(copy: Path, finished: StudyResult) -> None:
    lost = finished.of("noise")[0].run_id
    (copy / "out" / lost / METRICS_FILE).unlink()  # what a killed run looks like
    again = _run(copy)
    assert set(again.reused) == {run.run_id for run in finished.runs} - {lost}
    assert again.of("noise")[0].rows == finished.of("noise")[0].rows  # the same seed gives the same numbers


def test_the_recipe_in_the_folder_is_the_study_again(copy: Path, finished: StudyResult) -> None:
    assert len(_run(copy, steps=2).reused) == 6
    command, _, text = (copy / "out" / RECIPE_FILE).read_text().partition("\n\n")
    assert command == "# megasr study run tiny --config recipe.yaml --seeds 0 --steps 2 --output FOLDER"
    assert text == (copy / "recipe.yaml").read_text()
    again = _run(copy, recipe=copy / "out" / RECIPE_FILE)
    assert again.runs == finished.runs and len(again.reused) == 6
    assert (copy / "out" / RECIPE_FILE).read_text().count("# megasr study run") == 1


def test_another_protocol_measures_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.execute.execute_run", _first_run_only(execute_run))
    monkeypatch.setattr("ablations.execute.train", None)  # what is trained is not trained again
    again = _run(copy, protocol=Protocol("fast", 2, FAST.metrics))
    assert again.reused == ()
    assert [run.ablation for run in again.runs] == [BICUBIC, "none"]


def test_damaged_metrics_are_named(copy: Path, finished: StudyResult) -> None:
    path = copy / "out" / finished.runs[2].run_id / METRICS_FILE
    path.write_text(path.read_text()[:100])
    with pytest.raises(MegaSRError, match=rf"{finished.runs[2].run_id}.*is damaged.*delete"):
        _run(copy)


def _failing(patch: pytest.MonkeyPatch, error: Exception, *failing: tuple[tuple[str, ...], int]) -> None:
    """Runs with these (guidance, seed) raise `error` when they are built."""
    build = TinyModule.__init__

    def fail(
        self: TinyModule,
        adapter: TinyAdapter,
        scale_factor: int = 4,
        seed: int = 0,
        sampler: TinySampler = TinySampler(),  # noqa: B008
    ) -> None:
        if (tuple(adapter.guidance), seed) in failing:
            raise error
        build(self, adapter, scale_factor, seed, sampler)

    patch.setattr(TinyModule, "__init__", fail)


def test_a_failed_run_does_not_cost_the_others(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        _failing(patch, MegaSRError("no weights\nfor this"), (("canny",), 1))
        result = _run(copy, seeds=[0, 1])
    assert list(result.failed.values()) == ["no weights for this"]
    (failed,) = result.failed
    assert failed.startswith("tiny-canny-s1-")
    assert f"run {failed} failed: no weights for this" in "".join(capsys.readouterr().out.split("\n"))
    assert (len(result.runs), len(result.reused), result.seeds) == (10, 6, [0])
    with pytest.raises(MegaSRError, match=rf"1 run\(s\) failed: {failed}: no weights for this \("):
        write_report(result, copy, Console(quiet=True, width=140))
    stored = json.loads((copy / "results.json").read_text())
    assert (stored["seeds"], stored["failed"]) == ([0], dict(result.failed))
    assert f"Failed: {failed}" in (copy / "results.md").read_text()
    again = _run(copy, seeds=[0, 1])
    assert (len(again.reused), again.failed, again.seeds) == (10, {}, [0, 1])


def test_without_a_common_seed_there_is_no_report(copy: Path, finished: StudyResult) -> None:
    runs = tuple(run for run in finished.runs if run.ablation != "noise")
    with pytest.raises(MegaSRError, match=r"no report.*Failed: noise-s0: no weights"):
        write_report(replace(finished, runs=runs, failed={"noise-s0": "no weights"}), copy)
    assert not (copy / "results.json").exists()


def test_a_config_that_does_not_fit_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, UsageError("width must be even"), (("canny",), 0))
    with pytest.raises(UsageError, match=r"run tiny-canny-s0-\w+: width must be even"):
        _run(tmp_path)
    assert len(list((tmp_path / "out").rglob(METRICS_FILE))) == 2  # bicubic and none


def test_without_bicubic_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TinyData, stage: str) -> None:
        raise MegaSRError("photo0.png is truncated")

    monkeypatch.setattr(TinyData, "setup", broken)
    with pytest.raises(MegaSRError, match=r"run tiny-bicubic-\w+: photo0\.png is truncated; no other run"):
        _run(tmp_path)
    assert not list((tmp_path / "out").rglob("config.yaml"))


def test_a_protocol_without_the_primary_metric_is_refused_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown metric of protocol fast 'ssim_y'"):
        _run(tmp_path, protocol=Protocol("fast", 1, WEIGHT_FREE_V1.metrics[:1]))
    assert not (tmp_path / "out").exists()


def _first_run_only(run: Callable[..., RunResult]) -> Callable[..., RunResult]:
    """Runs what belongs to the reference; the rest fails without the time of training."""

    def only(plan: RunPlan, *arguments: object) -> RunResult:
        if plan.ablation != "none":
            raise MegaSRError("not run")
        return run(plan, *arguments)

    return only


def test_a_run_that_stops_early_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: TinyModule, *_: object) -> None:
        self.trainer.should_stop = True

    monkeypatch.setattr(TinyModule, "on_train_batch_end", stop, raising=False)
    monkeypatch.setattr("ablations.execute.execute_run", _first_run_only(execute_run))
    result = _run(tmp_path)
    assert next(iter(result.failed.values())) == "stopped after 1 of 2 steps; runs need equal steps"
    assert len(list((tmp_path / "out").rglob(METRICS_FILE))) == 1  # bicubic


def test_a_run_on_another_lq_than_the_baseline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    degrade = TinyData.on_after_batch_transfer

    def drifting(self: TinyData, batch: SRBatch, dataloader_idx: int) -> SRBatch:
        batch = degrade(self, batch, dataloader_idx)
        return {**batch, "lq": 1 - batch["lq"]} if list((tmp_path / "out").rglob(METRICS_FILE)) else batch

    monkeypatch.setattr(TinyData, "on_after_batch_transfer", drifting)
    monkeypatch.setattr("ablations.execute.execute_run", _first_run_only(execute_run))
    reason = next(iter(_run(tmp_path).failed.values()))
    assert reason.startswith("evaluated on another lq than")


def test_a_recipe_of_another_study_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    path.write_text(path.read_text().replace("name: tiny", "name: fusion"))
    with pytest.raises(UsageError, match="is a recipe for study 'fusion', not for 'tiny'"):
        open_study(TINY_STUDY, path, tmp_path, components=tiny_components())
    with pytest.raises(UsageError, match="unknown study 'prior'"):
        open_study("prior", path, tmp_path, components=tiny_components())


def test_the_report_of_the_study(copy: Path, finished: StudyResult) -> None:
    console = Console(record=True, width=140)
    write_report(finished, copy, console)
    text = console.export_text()
    assert all(run.ablation in text for run in finished.runs)
    assert "no positive (oracle) control" in text
    assert "One seed only" in text
    sheet = read_image(copy / "contact_sheet.png")
    assert sheet.shape[1] > 8 * 64
    lines = (copy / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + (5 + 4) * 2 + 2  # nine comparisons and the reference's own row, for two metrics
    assert "ssim_y ↑" in text.split("psnr_y ↑")[0]  # the primary metric is the first column, and says so
    assert re.search(r"^.*primary.*$", text, re.MULTILINE)
    stored = json.loads((copy / "results.json").read_text())
    assert stored["protocol"]["fingerprint"] == FAST.fingerprint
    assert stored["primary_metric"] == "ssim_y"
    assert [run["run_id"] for run in stored["runs"]] == [run.run_id for run in finished.runs]
    assert (copy / "results.md").read_text().count("\n| ") == 6 + 1
    with (copy / "scores.csv").open() as file:
        scores = {(row["ablation"], row["seed"], row["key"]): float(row["ssim_y"]) for row in csv.DictReader(file)}
    last = finished.runs[-1]
    assert scores[last.ablation, str(last.seed), last.rows[-1]["key"]] == last.rows[-1]["ssim_y"]
    assert len(scores) == sum(len(run.rows) for run in finished.runs)


def test_wandb_gets_the_report_of_new_runs_once(
    copy: Path, finished: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[str, StudyPage, Path]] = []

    def report(self: Tracker, page: StudyPage, folder: Path, _: Any) -> None:
        reports.append((self._group, page, folder))

    monkeypatch.setattr(Tracker, "report", report)
    quiet = Console(quiet=True, width=140)
    write_report(finished, copy, quiet)
    ((group, page, folder),) = reports
    assert group == finished.group
    assert len(page.results) == (5 + 4) * 2 + 2
    assert all((folder / name).is_file() for name in ("contact_sheet.png", "index.html", "results.json"))
    write_report(_run(copy), copy, quiet)
    assert len(reports) == 1


def test_learning_curves_are_differences_to_the_reference_of_the_same_seed(finished: StudyResult) -> None:
    curves, axis, note = learning_curves(finished)
    assert list(curves) == ["canny", "superpixel", "canny+superpixel", "noise"]
    assert axis == "training loss minus none's"
    assert "same seed" in note
    own, reference = (read_losses(finished.output / finished.of(name)[0].run_id) for name in ("canny", "none"))
    assert list(curves.index) == [1, 2]
    assert list(curves["canny"]) == pytest.approx([a[1] - b[1] for a, b in zip(own, reference, strict=True)])
    assert curves["canny"][1] != 0


def _recipe(folder: Path, study: str) -> Path:
    path = write_recipe(folder)
    path.write_text(path.read_text().replace("seeds: [0, 1]", f"seeds: [0], {study}"))
    return path


def test_the_rows_hold_what_the_protocol_of_the_recipe_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        PROTOCOLS,
        "_entries",
        {**PROTOCOLS._entries, "one-metric": Protocol("one-metric", 1, WEIGHT_FREE_V1.metrics[:1])},
    )
    study = replace(TINY_STUDY, ablations=TINY_STUDY.ablations[:1], controls={}, primary_metric="psnr_y")
    result = run_tiny(study, tmp_path, recipe=_recipe(tmp_path, "protocol: one-metric"), protocol=None)
    assert {name for run in result.runs for row in run.rows for name in row} == {"key", "psnr_y"}
    assert {run.protocol["name"] for run in result.runs} == {"one-metric"}


def test_weights_of_metrics_are_taken_from_the_folder_of_the_recipe(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in get_protocol("paired-v1").metric("lpips").weights:
        (weights / name).write_bytes(b"no weights")
    recipe = _recipe(tmp_path, f"protocol: paired-v1, weights_dir: {weights}")
    with pytest.raises(MegaSRError, match="weights of metrics are missing: dists lacks"):  # LPIPS is not named
        run_tiny(TINY_STUDY, tmp_path, recipe=recipe, protocol=None)
