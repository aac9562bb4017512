"""Studies with several evaluation sets: names, reuse of images and numbers, failures, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from ablations.contact_sheet import write_contact_sheet
from ablations.evaluation import EvaluationSet, check_sources, open_set, read_sets
from ablations.execute import Evaluators
from ablations.launch.local import LocalExecutor, Slot
from ablations.plan import BICUBIC, RunPlan, default_components
from ablations.record import STUDY_FILE
from ablations.registry import Ablation
from ablations.report import write_report
from ablations.results import (
    CHECKPOINT,
    METRICS_FILE,
    RESTORED_FILE,
    TRAINING_FILE,
    RunResult,
    StudyResult,
    tidy,
    values,
)
from ablations.runner import OpenStudy, open_study
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.protocol import METRICS, PROTOCOLS, WEIGHT_FREE_V1, MetricSpec, Protocol
from megasr.images import from_uint8, read_image, write_png
from tests.helpers.tiny_study import FAST, TINY_STUDY, TinyData, TinyModule, tiny_components, write_recipe

GMSD = Protocol("gmsd-alone", 1, WEIGHT_FREE_V1.metrics[2:3])
NIQE = Protocol("niqe-alone", 1, (METRICS["niqe"],))
STUDY = replace(TINY_STUDY, ablations=TINY_STUDY.ablations[:1], controls={}, primary_metric="ssim_y")
SETS = "{own: {}, small: {data: TinyData, size_px: 48, protocol: gmsd-alone}}"


@pytest.fixture(autouse=True)
def _protocols_and_no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    known = {**PROTOCOLS._entries, FAST.name: FAST, GMSD.name: GMSD}
    monkeypatch.setattr(PROTOCOLS, "_entries", known)


def _open(folder: Path, sets: str = SETS, study: Any = STUDY, more: str = "", **changes: Any) -> OpenStudy:
    recipe = write_recipe(folder)
    evaluation = f", evaluation: {sets}" if sets else ""
    options = f"seeds: [0], protocol: fast{evaluation}{more}"
    recipe.write_text(recipe.read_text().replace("seeds: [0, 1]", options))
    return open_study(study, recipe, folder / "out", components=tiny_components(), **changes)


def _run(study: OpenStudy, train: bool = True, retries: int = 0) -> StudyResult:
    return study.run(LocalExecutor([Slot("cpu0", 1)], retries), train)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and, in `out`, the study on both sets."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr(PROTOCOLS, "_entries", {**PROTOCOLS._entries, FAST.name: FAST, GMSD.name: GMSD})
        assert not _run(_open(folder)).failed
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def _times(folder: Path, *names: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for name in names for path in folder.rglob(name)}


def test_metrics_are_named_by_their_set_where_there_are_several(finished: Path) -> None:
    result = _open(finished).result()
    assert result.study.primary_metric == "own/ssim_y", "a bare name is the first set's"
    assert [metric.name for metric in result.metrics] == ["own/psnr_y", "own/ssim_y", "small/gmsd"]
    assert set(tidy(result)["metric"]) == {"own/psnr_y", "own/ssim_y", "small/gmsd"}
    canny = result.of("canny")[0]
    assert len(canny.rows) == 12 and set(canny.rows[-1]) == {"key", "small/gmsd"}
    (places,) = [list((finished / "out" / canny.run_id / "sets").iterdir())]
    assert [place.name.startswith("tinydata-") for place in places] == [True]
    alone = _open(finished, "{own: {}}", replace(STUDY, primary_metric="own/ssim_y")).result()
    assert alone.study.primary_metric == "ssim_y" and [m.name for m in alone.metrics] == ["psnr_y", "ssim_y"]


def test_the_report_speaks_of_both_sets(copy: Path) -> None:
    console = Console(record=True, width=160)
    write_report(_open(copy).result(), copy / "out", console)
    assert "small/gmsd" in console.export_text()
    page = (copy / "out" / "index.html").read_text()
    for text in (
        "own/ssim_y",
        "small/gmsd",
        "6 of own, 6 of small",
        f"{GMSD.fingerprint}) of small",
        "over 3 photographs of own and 1 seed(s), 3 photographs of small and 1 seed(s), not corrected",
        "own/ssim_y as large as they were seen (half as large takes four times as many): canny (-0.00073): 6 "
        "photographs of own.",
        "3 photographs of own are too few for 1 comparisons",
    ):
        assert text in page
    stored = json.loads((copy / "out" / "results.json").read_text())
    assert stored["protocol"]["small"] == {"name": "gmsd-alone", "fingerprint": GMSD.fingerprint}
    assert "small/gmsd" in (copy / "out" / "scores.csv").read_text().splitlines()[0]


def test_a_set_that_is_added_is_restored_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _run(_open(tmp_path, ""))
    before = _times(tmp_path, CHECKPOINT, TRAINING_FILE, "*.png", METRICS_FILE)
    monkeypatch.setattr("ablations.execute.train", None)
    both = _run(_open(tmp_path), train=False)
    assert (both.failed, both.reused) == ({}, ())
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing of the first set was touched"
    assert both.runs[1].summary["own/psnr_y"] == first.runs[1].summary["psnr_y"]
    assert "small/gmsd" in both.runs[1].summary


def test_another_protocol_measures_the_same_images_and_both_are_kept(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _times(copy, CHECKPOINT, TRAINING_FILE, "*.png", RESTORED_FILE)
    monkeypatch.setattr("ablations.execute.train", None)
    monkeypatch.setattr("ablations.execute.restore_set", None)
    sets = SETS.replace("gmsd-alone", "weight-free-v1")
    result = _run(_open(copy, sets))
    assert not result.failed and "small/fsim" in result.runs[0].summary
    assert _times(copy, CHECKPOINT, TRAINING_FILE, "*.png", RESTORED_FILE) == before
    monkeypatch.setattr("ablations.execute.measure_set", None)
    assert len(_run(_open(copy)).reused) == 3, "the numbers of the first protocol are still there"


def test_sets_of_the_same_images_share_them(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.execute.restore_set", None)
    again = "{own: {}, small: {data: TinyData, size_px: 48, protocol: gmsd-alone}, again: {protocol: gmsd-alone}}"
    result = _run(_open(copy, again))
    assert not result.failed and "again/gmsd" in result.runs[0].summary


def test_numbers_are_those_of_the_written_pictures(finished: Path) -> None:
    study = _open(finished)
    result = study.result()
    canny, small = result.of("canny")[0], result.sets[1]
    data = open_set(small, {}, study.components)
    hq = {key: image for batch in data.val_dataloader() for key, image in zip(batch["keys"], batch["hq"], strict=True)}
    place = small.folder(finished / "out" / canny.run_id) / "sr"
    for row in canny.rows[6:8]:
        sr = from_uint8(read_image(place / f"{row['key']}.png"))[None]
        (expected,) = Evaluator(GMSD).rows(sr, hq[row["key"]][None], [row["key"]])
        assert row["small/gmsd"] == expected["gmsd"]


@pytest.mark.parametrize(("shown", "device"), [(True, "cuda"), (False, "cpu")])
def test_metrics_are_taken_on_the_gpu_of_the_job(shown: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[str]()

    def record(protocol: Protocol, device: str, **settings: Any) -> Evaluator:
        made.append(device)
        return Evaluator(protocol, **settings)

    monkeypatch.setattr("ablations.execute.Evaluator", record)
    monkeypatch.setattr("torch.cuda.is_available", lambda: shown)
    one = EvaluationSet("own", FAST)
    evaluators = Evaluators([one])
    assert evaluators.of(one) is evaluators.of(one)
    assert made == [device]


def test_images_of_other_weights_are_restored_again(copy: Path) -> None:
    study = _open(copy)
    host = copy / "out" / next(plan.run_id for plan in study.plans if plan.ablation == "canny")
    stored = json.loads((host / TRAINING_FILE).read_text())
    (host / TRAINING_FILE).write_text(json.dumps(stored | {"weights": "0123456789ab"}))
    before = _times(host, "*.png")
    assert set(_run(study).reused) == {plan.run_id for plan in study.plans if plan.ablation != "canny"}
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())


def test_a_study_of_before_the_sets_is_reused(copy: Path) -> None:
    """metrics.json was one result, and there was no restored.json."""
    out = copy / "out"
    for place in [path.parent for path in out.glob(f"*/{METRICS_FILE}")]:
        (record,) = json.loads((place / METRICS_FILE).read_text()).values()
        record.pop("weights")
        (place / METRICS_FILE).write_text(json.dumps(record))
        (place / RESTORED_FILE).unlink()
        if (place / TRAINING_FILE).is_file():
            training = json.loads((place / TRAINING_FILE).read_text())
            training.pop("weights")
            (place / TRAINING_FILE).write_text(json.dumps(training))
    (out / STUDY_FILE).unlink()
    before = _times(copy, "*.png", CHECKPOINT)
    assert len(_run(_open(copy, "")).reused) == 3
    assert not _run(_open(copy, "", protocol=Protocol("three", 1, WEIGHT_FREE_V1.metrics[:3]))).failed
    assert _times(copy, "*.png", CHECKPOINT) == before, "its pictures are measured by another protocol"


def _break(monkeypatch: pytest.MonkeyPatch, what: Any) -> None:
    """`what` happens when canny restores an image of the small set."""
    restore = TinyModule.restore

    def broken(self: TinyModule, batch: Any) -> Any:
        if self.shift and batch["hq"].shape[-1] == 48:
            what()
        return restore(self, batch)

    monkeypatch.setattr(TinyModule, "restore", broken)


def test_a_set_that_fails_costs_neither_the_others_nor_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise MegaSRError("the image is too dark")

    with monkeypatch.context() as patch:
        _break(patch, fail)
        result = _run(_open(tmp_path))
    (run_id,) = result.failed
    assert result.failed[run_id] == "evaluation set small: the image is too dark"
    assert [metric.name for metric in result.metrics] == ["own/psnr_y", "own/ssim_y"]
    assert result.missing == [(run_id, "small")]
    with pytest.raises(MegaSRError, match=r"1 run\(s\) failed: tiny-canny.*evaluation set small"):
        write_report(result, tmp_path / "out", Console(quiet=True))
    assert f"left out: {run_id} of small." in (tmp_path / "out" / "index.html").read_text()
    before = _times(tmp_path, CHECKPOINT)
    again = _run(_open(tmp_path))
    assert not again.failed and not again.missing and _times(tmp_path, CHECKPOINT) == before


def test_a_kill_loses_the_set_in_work_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "killed"

    def kill() -> None:
        if not mark.exists():
            kept = _times(tmp_path / "out", CHECKPOINT, f"tiny-canny-*/{RESTORED_FILE}", f"tiny-canny-*/{METRICS_FILE}")
            mark.write_text(json.dumps({str(path): time for path, time in kept.items()}))
            os.kill(os.getpid(), signal.SIGKILL)

    _break(monkeypatch, kill)
    result = _run(_open(tmp_path), retries=1)
    assert not result.failed and not result.missing
    kept = json.loads(mark.read_text())
    assert len(kept) == 4, "two trainings, and the first set of canny restored and measured"
    assert {path: Path(path).stat().st_mtime_ns for path in kept} == kept


def test_nothing_is_trained_where_only_evaluation_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = _run(_open(tmp_path), train=False)
    assert [run.ablation for run in result.runs] == [BICUBIC]
    assert "canny seed 0: not trained, so not evaluated; `megasr study run` trains it" in capsys.readouterr().out
    assert not list(tmp_path.rglob(CHECKPOINT))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("[a]", "study.evaluation must be sets by name, got"),
        ("{}", "study.evaluation must be sets by name, got {}"),
        ("{A: {}}", "study.evaluation.A: use lower case letters"),
        ("{a: folder}", r"study.evaluation.a must be keys with values \(data, protocol, limit\), got 'folder'"),
        ("{a: {limit: 0}}", "study.evaluation.a.limit must be 1 or more images, got 0"),
        ("{a: {root: photos}}", "study.evaluation.a: the recipe's data takes no root; name another data with it"),
        ("{a: {data: drealsrr}}", "unknown data of .*study.evaluation.a 'drealsrr'; did you mean drealsr"),
        ("{a: {protocol: weight-fre-v1}}", "unknown protocol 'weight-fre-v1'"),
        ("{a: {data: TinyData, photo: 3}}", "study.evaluation.a: [a-z_.]*TinyData: Option 'photo' is not accepted$"),
        ("{a: {protocol: gmsd-alone}}", "unknown metric of protocol gmsd-alone 'ssim_y'"),
    ],
)
def test_what_cannot_be_a_set_is_refused_when_the_study_is_opened(tmp_path: Path, sets: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _open(tmp_path, sets)


def test_a_protocol_that_needs_hq_is_refused_for_images_without(tmp_path: Path) -> None:
    section = {"faces": {"data": "reallq250", "root": str(tmp_path), "protocol": "weight-free-v1"}}
    with pytest.raises(UsageError, match="faces: no metric of weight-free-v1 is taken .*, and reallq250 has no hq"):
        read_sets(section, FAST, default_components(), Path("mine.yaml"))
    (own,) = read_sets({"faces": {"data": "reallq250", "root": "x"}}, FAST, default_components(), Path("mine.yaml"))
    assert own.protocol.name == "dreamclear-1024-v1", "a benchmark has a protocol of its own"
    assert {metric.name for metric in own.metrics} == {"niqe", "maniqa", "musiq", "clipiqa"}


def test_folders_and_weights_are_checked_before_the_first_run(tmp_path: Path) -> None:
    photos = "{own: {}, photos: {data: ImagesDataModule, root: %s}}"
    components = replace(tiny_components(), data=default_components().data)
    recipe = write_recipe(tmp_path)
    data = "{class_path: tests.helpers.evaluation_sets.NamedPictures, init_args: {keys: [a, b]}}"
    lines = [line if not line.startswith("data") else f"data: {data}" for line in recipe.read_text().splitlines()]

    def opened(root: Path, protocol: str = "fast") -> OpenStudy:
        options = f"seeds: [0], protocol: {protocol}, evaluation: {photos % root}"
        recipe.write_text("\n".join(lines).replace("seeds: [0, 1]", options))
        return open_study(STUDY, recipe, tmp_path / "out", components=components)

    with pytest.raises(UsageError, match="evaluation set photos: .*nowhere: no such folder"):
        opened(tmp_path / "nowhere").check()
    write_png(np.zeros((32, 32, 3), np.uint8), tmp_path / "photos" / "hq" / "a.png")
    write_png(np.zeros((16, 16, 3), np.uint8), tmp_path / "photos" / "lq" / "a.png")
    with pytest.raises(UsageError, match=r"evaluation set photos: .*do not make pairs of x4"):
        opened(tmp_path / "photos").check()
    write_png(np.zeros((8, 8, 3), np.uint8), tmp_path / "damaged" / "lq" / "a.png")
    with pytest.raises(UsageError, match="evaluation set photos: .*damaged has a folder lq and none called hq"):
        opened(tmp_path / "damaged").check()
    with pytest.raises(MegaSRError, match=r"weights of metrics are missing: lpips lacks .*http.*; dists lacks .*http"):
        opened(tmp_path / "photos", "paired-v1").check()
    assert not (tmp_path / "out").exists()


def _mean(sr: torch.Tensor) -> float:
    return float(sr.mean())


def test_optional_metrics_are_taken_where_their_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = METRICS["niqe"].weights[0]
    mean = MetricSpec("mean", higher_is_better=True, needs_hq=False, function=_mean, weights=(file,), optional=True)
    monkeypatch.setitem(PROTOCOLS._entries, "some", Protocol("some", 1, (*FAST.metrics, mean)))
    monkeypatch.delenv("MEGASR_WEIGHTS", raising=False)
    console = Console(record=True, width=200)
    first = _run(_open(tmp_path, "{own: {protocol: some}}"))
    write_report(first, tmp_path / "out", console)
    assert [metric.name for metric in first.metrics] == ["psnr_y", "ssim_y"]
    printed = console.export_text()
    assert "Their weights are not on this machine, so not measured: mean (megasr weights list)." in printed
    assert printed.startswith("None of 1 is shown to restore better than"), "the answer comes first"

    for needed in ("primary_metric", "holdout_metric"):
        with pytest.raises(MegaSRError, match=f"mean lacks {file}"):
            _open(tmp_path, "{own: {protocol: some}}", replace(STUDY, **{needed: "mean"})).check()

    monkeypatch.setitem(PROTOCOLS._entries, "none-here", Protocol("none-here", 1, (mean,)))
    with pytest.raises(MegaSRError, match=f"weights of metrics are missing: mean lacks {file}"):
        _open(tmp_path, "{own: {}, bare: {protocol: none-here}}").check()

    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / file).write_bytes(b"present")
    monkeypatch.setattr("ablations.execute.train", None)
    monkeypatch.setattr("ablations.execute.restore_set", None)
    more = f", weights_dir: {tmp_path / 'weights'}"
    second = _run(_open(tmp_path, "{own: {protocol: some}}", more=more), train=False)
    assert second.failed == {} and [metric.name for metric in second.metrics] == ["psnr_y", "ssim_y", "mean"]
    assert second.runs[1].summary["ssim_y"] == first.runs[1].summary["ssim_y"]


def test_the_contact_sheet_has_rows_of_every_set(copy: Path) -> None:
    result = _open(copy).result()
    write_contact_sheet(result, copy / "sheet.png", rows=3)
    both = read_image(copy / "sheet.png")
    write_contact_sheet(_open(copy, "{own: {}}", replace(STUDY, primary_metric="ssim_y")).result(), copy / "own.png", 2)
    own = read_image(copy / "own.png")
    assert both.shape[1] == own.shape[1] and both.shape[0] > own.shape[0]
    reference, run = result.of("none")[0], result.of("canny")[0]

    def second_seed(of: RunResult, name: str) -> RunResult:  # finished on one of the sets
        rows = [row for row in of.rows if any(column.startswith(name) for column in row)]
        return replace(of, seed=1, rows=rows, summary={k: v for k, v in of.summary.items() if k.startswith(name)})

    unfinished = replace(result, runs=(*result.runs, second_seed(reference, "own"), second_seed(run, "small")))
    assert {name for _, name in unfinished.missing} == {"own", "small"}
    write_contact_sheet(unfinished, copy / "unfinished.png", rows=3)
    assert np.array_equal(read_image(copy / "unfinished.png"), both), "the first seed is whole"
    key = next(iter(values(run, "own/ssim_y")))
    write_png(np.full((64, 64, 3), 7, np.uint8), copy / "out" / run.run_id / "maps" / f"{key}.png")
    write_contact_sheet(result, copy / "sheet.png", rows=3)
    with_map = read_image(copy / "sheet.png")
    assert with_map.shape[0] == both.shape[0] + 3 * (128 + 12), "a line of maps below every row"
    assert (with_map == 7).all(-1).sum() == 126 * 126, "in a frame of a pixel"


def test_a_set_whose_images_have_changed_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyData, "eval_keys", lambda self: ["photo0/0-0", "new"], raising=False)
    study = _open(copy, SETS, replace(STUDY, ablations=TINY_STUDY.ablations[:2]))
    with pytest.raises(MegaSRError, match="small has 2 images, and had 6 when bicubic was measured; 6 are .*new"):
        _run(study)


def test_a_run_on_other_images_than_bicubic_fails(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = TinyData.__init__

    def fewer(self: TinyData, scale_factor: int = 4, photos: int = 3, size_px: int = 64, seed: int = 0) -> None:
        made(self, scale_factor, 2 if size_px == 48 else photos, size_px, seed)

    monkeypatch.setattr(TinyData, "__init__", fewer)
    result = _run(_open(copy, SETS, replace(STUDY, ablations=TINY_STUDY.ablations[:2])))
    (reason,) = result.failed.values()
    assert "evaluation set small has 4 images, and had 6 when bicubic was measured" in reason
    assert result.missing and result.missing[0][1] == "small"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": ", holdout_metric: own/ssim_y"}, "holdout_metric own/ssim_y is the primary metric"),
        (
            {"more": ", holdout_metric: lpips"},
            "study.holdout_metric: unknown metric of protocol fast, gmsd-alone 'lpips'",
        ),
        ({"more": ", holdout_metric: 3"}, "study.holdout_metric must be the name of a metric, got 3"),
    ],
)
def test_a_holdout_metric_that_is_none(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _open(tmp_path, **changes)


def test_a_study_may_grow_and_not_change(copy: Path) -> None:
    grown = replace(STUDY, ablations=TINY_STUDY.ablations[:2])
    study = _open(
        copy, SETS.replace("{own", "{more: {protocol: gmsd-alone}, own"), replace(grown, primary_metric="own/ssim_y")
    )
    study.check_unchanged()
    _open(copy, SETS, STUDY, ", least_difference: 0.1, holdout_metric: small/gmsd", seeds=[0, 1]).check_unchanged()
    moved = TINY_STUDY.ablations[1]
    for changed, message in (
        (_open(copy, steps=3), "reference: trainer.max_steps 2 -> 3"),
        (_open(copy, study=replace(STUDY, primary_metric="psnr_y")), "primary_metric: recipe/ssim_y -> recipe/psnr_y"),
        (_open(copy, study=replace(STUDY, ablations=(moved,))), "ablation canny: removed"),
        (
            _open(copy, study=replace(STUDY, ablations=(replace(moved, name="canny"),))),
            r"ablation canny: model.adapter.guidance \['canny'\] -> \['superpixel'\]",
        ),
        (_open(copy, SETS.replace("48", "32")), "evaluation set small: tinydata-.* -> tinydata-"),
        (_open(copy, "{own: {}}"), "evaluation set small: removed"),
    ):
        with pytest.raises(UsageError, match=f"(?s)was begun as another study; what has changed since:.*{message}"):
            changed.check_unchanged()
    with pytest.raises(UsageError, match="what has changed since"):
        _run(_open(copy, steps=3))


def test_other_words_are_recorded_and_said_and_run_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.execute.execute_run", None)
    expected = replace(STUDY.ablations[0], hypothesis="Better.")
    asked = replace(STUDY, question="Does canny help?", ablations=(expected,))
    result = _run(_open(copy, study=asked))
    assert len(result.reused) == 3 and not result.failed
    console = Console(record=True, width=400)
    write_report(_open(copy, study=asked).result(), copy / "out", console)
    (line,) = [line.strip() for line in console.export_text().splitlines() if line.startswith("Reworded")]
    assert line == (
        "Reworded since the study was begun (no run depends on it): question: 'Which guidance types help?' -> 'Does "
        "canny help?'; expected of canny: '' -> 'Better.'."
    )
    assert '<p class="question">Does canny help?</p>' in (copy / "out" / "index.html").read_text()
    assert json.loads((copy / "out" / STUDY_FILE).read_text())["wording"]["question"] == "Which guidance types help?"
    assert not _open(copy).result().reworded, "as it was begun"


def test_maps_of_hq_are_refused_beside_a_set_without_hq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = "{own: {}, faces: {data: TinyData, photos: 4, protocol: niqe-alone}}"
    monkeypatch.setattr(PROTOCOLS, "_entries", {**PROTOCOLS._entries, "niqe-alone": NIQE})
    path = "model.adapter.guidance"
    oracle = Ablation("oracle", {path: ["oracle_canny", "hed"]}, (path,), "")
    study = replace(STUDY, ablations=(*STUDY.ablations, oracle))
    _open(tmp_path, blind, study)
    monkeypatch.setattr(TinyData, "has_hq", False, raising=False)
    _open(tmp_path, blind)
    with pytest.raises(UsageError, match="set faces has no hq, and oracle restores with oracle_canny, which needs hq"):
        _open(tmp_path, blind, study)
    plan = RunPlan("i", "tiny", "all", 0, {"model": {"adapter": {"guidance": ["hed", "oracle_hed"]}}}, "f")
    sets = (EvaluationSet("faces", NIQE, has_hq=False),)
    for shown, refused in ((["hed"], False), (["oracle_hed"], True), (None, True)):
        config = {"model": {**plan.config["model"], "sampler": {"shown_guidance": shown}}}
        with pytest.raises(UsageError, match="oracle_hed") if refused else nullcontext():
            check_sources(sets, [replace(plan, config=config)])


def test_a_limit_takes_fewer_images_and_is_a_set_of_its_own(tmp_path: Path) -> None:
    for number in range(3):
        write_png(np.zeros((32, 32, 3), np.uint8), tmp_path / "hq" / f"{number}.png")
        write_png(np.zeros((8, 8, 3), np.uint8), tmp_path / "lq" / f"{number}.png")
    given = {"data": "images", "root": str(tmp_path)}
    sections = {"few": given | {"limit": 2}, "all": given}
    few, all_of_them = read_sets(sections, FAST, default_components(), Path("mine.yaml"))
    assert [len(open_set(one, {}, default_components()).eval_keys()) for one in (few, all_of_them)] == [2, 3]
    assert few.identity != all_of_them.identity
    assert EvaluationSet("own", FAST, limit=2).identity.startswith("recipe-")


def test_one_set_of_images_under_two_protocols_is_measured_by_both_at_once(tmp_path: Path) -> None:
    result = _run(_open(tmp_path, "{own: {}, again: {protocol: gmsd-alone}}"))
    assert not result.missing and not result.failed
    assert {"own/psnr_y", "again/gmsd"} <= set(result.of("canny")[0].summary)
