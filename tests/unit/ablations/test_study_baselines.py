"""Baselines of a study beside bicubic: rows of the tables and the page, reuse, failures, and what is refused."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from ablations.launch.local import LocalExecutor, Slot
from ablations.plan import BICUBIC, baseline_name
from ablations.planned import Cost, describe_cost
from ablations.registry import Study
from ablations.report import write_report
from ablations.results import METRICS_FILE, StudyResult
from ablations.runner import OpenStudy, open_study
from ablations.study_page import study_page
from megasr.errors import MegaSRError, UsageError
from megasr.images import read_image
from megasr.inference.baselines import restore_folder
from tests.helpers.rrdb import rrdb_state
from tests.helpers.shared import shared
from tests.helpers.tiny_study import FAST, TINY_STUDY, tiny_components, write_recipe

STUDY = replace(TINY_STUDY, ablations=TINY_STUDY.ablations[:1], controls={})
SETS = "{own: {}, small: {data: TinyData, size_px: 48}}"


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def _checkpoint(path: Path, **changes: torch.Tensor) -> Path:
    torch.save({"params_ema": {name: value.half() for name, value in (rrdb_state() | changes).items()}}, path)
    return path


def _open(folder: Path, baselines: str = "", study: Study = STUDY, more: str = "") -> OpenStudy:
    recipe = write_recipe(folder)
    named = f", baselines: {baselines}" if baselines else ""
    recipe.write_text(recipe.read_text().replace("seeds: [0, 1]", f"seeds: [0], evaluation: {SETS}{named}{more}"))
    return open_study(study, recipe, folder / "out", protocol=FAST, components=tiny_components())


def _run(study: OpenStudy, train: bool = True) -> StudyResult:
    return study.run(LocalExecutor([Slot("cpu0", 1)], retries=0), train)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, StudyResult]:
    """The folder, the weights, and the study with the baselines bicubic and Other.pth, with its report in `out`."""
    folder = tmp_path_factory.mktemp("study")
    other = _checkpoint(folder / "Other.v2.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        result = _run(_open(folder, f"[bicubic, {other}]"))
        write_report(result, folder / "out", Console(quiet=True))
    return folder, other, result


def test_a_baseline_is_restored_once_per_set_and_measured(finished: tuple[Path, Path, StudyResult]) -> None:
    folder, other, result = finished
    assert [run.ablation for run in result.runs] == [BICUBIC, "other-v2", "none", "canny"] and not result.failed
    bicubic, baseline = result.runs[:2]
    assert result.baselines == [BICUBIC, "other-v2"]
    assert baseline.seed is None and baseline.steps == 0 and baseline.summary.keys() == bicubic.summary.keys()
    assert baseline.summary != bicubic.summary
    for one in result.sets:
        made, given = (one.folder(folder / "out" / run.run_id) for run in (baseline, bicubic))
        assert not (made / "lq").exists() and not (made / "hq").exists(), "bicubic's serve all"
        lq = {str(path.relative_to(given / "lq"))[:-4]: path for path in (given / "lq").rglob("*.png")}
        restore_folder(str(other), lq, folder / one.name, scale_factor=4)
        for key in lq:  # the study restores lq before it is rounded to 8 bits
            places = (folder / one.name, made / "sr", given / "sr")
            expected, found, plain = (read_image(place / f"{key}.png").astype(int) for place in places)
            assert np.abs(expected - found).mean() < 1 < np.abs(found - plain).mean()


def test_a_baseline_is_a_row_of_every_table_and_of_the_page(finished: tuple[Path, Path, StudyResult]) -> None:
    folder, _, result = finished
    out = folder / "out"
    rows = pd.read_csv(out / "results.csv")
    mine = rows[(rows.row == "other-v2") & (rows.reference == "none")].set_index("metric")
    assert set(mine.index) == {"own/psnr_y", "own/ssim_y", "small/psnr_y", "small/ssim_y"}
    reference = result.of("none")[0].summary
    for metric, mean in result.runs[1].summary.items():
        assert mine.loc[metric, "mean"] == pytest.approx(mean)
        assert mine.loc[metric, "difference"] == pytest.approx(mean - reference[metric])
    assert set(mine.verdict) == {"exploratory"}, "nothing of a baseline is judged"
    assert {"other-v2", BICUBIC} <= set(rows[rows.row == "canny"].reference)
    assert {"other-v2", BICUBIC} <= set(pd.read_csv(out / "scores.csv").ablation)
    assert set(pd.read_csv(out / "ranking.csv").label) == {"none", "canny"}
    assert re.search(r"\| other-v2 +\|", (out / "results.md").read_text())
    html = (out / "index.html").read_text()
    for name in (BICUBIC, "other-v2"):
        assert f'title="Show the pictures of {name}">{name}</button>' in html
    assert html.count('data-value="baseline"') == 2


def test_the_table_of_the_page_sorts_baselines_in_and_never_calls_them_best(
    finished: tuple[Path, Path, StudyResult],
) -> None:
    from ablations.conclusions import make_report
    from ablations.page import _rows

    result = finished[2]
    page = study_page(result, make_report(result))
    assert list(page.pictures)[:3] == ["lq", BICUBIC, "other-v2"]
    rows = {row["label"]: row for row in _rows(page, {})}
    assert sorted(rows) == ["bicubic", "canny", "none", "other-v2"]
    differences = [row["difference"] for row in rows.values()]
    assert differences == sorted(differences, reverse=True)
    for name, row in rows.items():
        assert not (row["kind"] == "baseline" and any(cell["best"] for cell in row["numbers"][2:])), name
    reference, bicubic = (result.of(name)[0] for name in ("none", BICUBIC))
    pairs = zip(bicubic.rows, reference.rows, strict=True)
    wins = [mine["own/ssim_y"] > other["own/ssim_y"] for mine, other in pairs if "own/ssim_y" in mine]
    assert rows[BICUBIC]["numbers"][0]["value"] == pytest.approx(np.mean(wins))


def test_a_finished_study_may_get_a_baseline_and_not_lose_it(
    finished: tuple[Path, Path, StudyResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other, result = finished
    shutil.copytree(folder / "out", tmp_path / "out")
    again = _checkpoint(tmp_path / "again.pth")
    monkeypatch.setattr("ablations.execute.train", None)
    assert len(_run(_open(tmp_path, f"[bicubic, {other}]")).reused) == 4
    grown = _run(_open(tmp_path, f"[{again}, {other}]"))
    assert set(grown.reused) == {run.run_id for run in result.runs}
    assert grown.baselines == [BICUBIC, "again", "other-v2"]
    assert grown.of("again")[0].summary == grown.of("other-v2")[0].summary
    with pytest.raises(UsageError, match="what has changed since: baseline again: removed; baseline other-v2: removed"):
        _open(tmp_path).check_unchanged()


def test_a_baseline_that_fails_stops_nothing_and_is_named(tmp_path: Path) -> None:
    broken = _checkpoint(tmp_path / "broken.pth", **{"conv_last.bias": torch.full((3,), torch.nan)})
    result = _run(_open(tmp_path, f"[{broken}]"))
    assert list(result.failed.values()) == [f"{broken}: sr is not finite: are these its weights?"]
    assert result.baselines == [BICUBIC]
    with pytest.raises(MegaSRError, match=r"1 run\(s\) failed: tiny-broken"):
        write_report(result, tmp_path / "out", Console(quiet=True))
    assert "Not measured on every set, so left out: the baselines broken." in (tmp_path / "out/results.md").read_text()
    assert not list(tmp_path.glob(f"out/tiny-broken-*/{METRICS_FILE}"))


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        ("[bicubc]", r"study.baselines: unknown baseline 'bicubc'; did you mean bicubic\? \(or a .pth of an RRDBNet\)"),
        ("[realesrgan]", "unknown baseline 'realesrgan'; did you mean realesrgan-x4plus"),
        ("bicubic", "study.baselines must be a list of names or files, got 'bicubic'"),
        ("[3]", r"study.baselines must be a list of names or files, got \[3\]"),
        ("[a/none.pth]", "baseline a/none.pth and another row are both called none"),
        ("[a/Model.pth, b/model.pth]", "baseline b/model.pth and another row are both called model"),
    ],
)
def test_what_is_no_baseline_is_refused_when_the_study_is_opened(tmp_path: Path, baselines: str, message: str) -> None:
    for name in ("a/none.pth", "a/Model.pth", "b/model.pth"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _checkpoint(tmp_path / name)
    with pytest.raises(UsageError, match=message), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        _open(tmp_path, baselines)


def test_another_scale_and_missing_weights_are_refused_before_the_first_run(tmp_path: Path) -> None:
    lacking = "weights of baselines are missing: .*nowhere.pth.*; realesrgan-x4plus is not .*weights fetch.*https"
    with pytest.raises(MegaSRError, match=lacking):
        _open(tmp_path, "[nowhere.pth, realesrgan-x4plus]")
    recipe = write_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("photos: 3", "photos: 3, scale_factor: 2"))
    study = replace(STUDY, baselines=(str(_checkpoint(tmp_path / "x4.pth")),))
    with pytest.raises(UsageError, match=r"study.baselines: .*x4.pth restores x4, these images are x2"):
        open_study(study, recipe, tmp_path / "out", protocol=FAST, components=tiny_components())
    assert not (tmp_path / "out").exists()


def test_an_ablation_may_not_be_called_bicubic(tmp_path: Path) -> None:
    study = replace(STUDY, ablations=(replace(STUDY.ablations[0], name=BICUBIC),))
    with pytest.raises(UsageError, match="baseline bicubic and another row are both called bicubic"):
        _open(tmp_path, study=study)


def test_a_study_without_the_field_has_bicubic_and_the_same_runs(tmp_path: Path) -> None:
    other = _checkpoint(tmp_path / "other.pth")
    plain, named = _open(tmp_path), _open(tmp_path, f"[{other}]")
    assert plain.study.baselines == (BICUBIC,) and named.study.baselines == (BICUBIC, str(other))
    ids = [[plan.run_id for plan in study.plans] for study in (plain, named)]
    assert [ids[1][0], *ids[1][2:]] == ids[0] and ids[1][1].startswith("tiny-other-")
    _checkpoint(other, **{"conv_last.bias": torch.ones(3)})
    assert _open(tmp_path, f"[{other}]").plans[1].run_id != ids[1][1], "other weights under the name are another run"


def test_real_esrgan_in_a_study(tmp_path: Path) -> None:
    weights = shared("weights", "realesrgan", "RealESRGAN_x4plus.fp16.pth")
    result = _run(_open(tmp_path, f"[{weights}]"), train=False)
    assert baseline_name(str(weights)) == "realesrgan_x4plus-fp16" == result.runs[1].ablation
    found, bicubic = (run.summary["own/psnr_y"] for run in result.runs[1::-1])
    assert 12 < found != bicubic, "crops are of random pixels, to which it gives edges"


def test_the_plan_says_that_baselines_are_not_in_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.planned.probe", lambda *given: Cost(1.0, 1.0, 1.0, 10, 10.0))
    other = _checkpoint(tmp_path / "other.pth")
    said = [describe_cost(_open(tmp_path, named), [Slot("cpu0", 1)]) for named in ("", f"[{other}]")]
    assert "measured alone)" in said[0] and "measured alone, without restoring by other)" in said[1]
