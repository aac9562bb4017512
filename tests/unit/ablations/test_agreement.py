"""How well one study predicts another, on results whose order is known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ablations import agreement
from ablations.agreement import compare_studies
from ablations.evaluation import RECIPE, EvaluationSet
from ablations.plan import BICUBIC
from ablations.registry import Ablation, Study
from ablations.results import RunResult, StudyResult
from megasr.errors import UsageError
from megasr.evaluation.protocol import WEIGHT_FREE_V1, Protocol
from megasr.rng import numpy_generator

PROTOCOL = Protocol("one", 1, WEIGHT_FREE_V1.metrics[2:3])  # gmsd: lower is better
GAINS = {"none": 0.0, "canny": 0.01, "depth": 0.02, "hed": 0.03, "depth+hed": 0.04, "oracle": 0.09}
PHOTOS = 24


def _ablation(name: str) -> Ablation:
    parts = None if name == "oracle" else () if name == "none" else tuple(name.split("+"))
    return Ablation(name, {"a": name}, ("a",), "", parts)


def _study(name: str, gains: dict[str, float], seeds: tuple[int, ...] = (0, 1), spread: float = 1e-3) -> StudyResult:
    none, *others = (_ablation(ablation) for ablation in gains)
    study = Study(name, "Which?", none, tuple(others), "gmsd", {})
    runs = [_run(name, BICUBIC, None, 0.0, spread)]
    runs += [_run(name, ablation, seed, gain, spread) for seed in seeds for ablation, gain in gains.items()]
    return StudyResult(study, (EvaluationSet(RECIPE, PROTOCOL),), tuple(runs), Path(), "group", ())


def _run(study: str, ablation: str, seed: int | None, gain: float, spread: float) -> RunResult:
    noise = numpy_generator(0, study, ablation, seed or 0).normal(size=PHOTOS) * spread
    rows = [{"key": f"photo{i}", "gmsd": 0.3 - gain + float(noise[i])} for i in range(PHOTOS)]
    return RunResult(
        run_id=f"{ablation}-{seed}", study=study, ablation=ablation, seed=seed, fingerprint="", protocol={},
        rows=rows,
        summary={"gmsd": 0.3 - gain}, steps=1, train_s=0, evaluate_s=0, device="cpu", commit=None, versions={},
        tracking=None,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    kendall = agreement.kendall
    monkeypatch.setattr(agreement, "kendall", lambda *arguments: kendall(*arguments, resamples=500))


def test_the_same_order_is_predicted() -> None:
    found = compare_studies(_study("cheap", GAINS), _study("costly", {k: v * 3 for k, v in GAINS.items()}, (5, 6, 7)))
    assert found.tau.mean == 1 and found.tau.low > 0.5
    assert found.regret == 0
    assert list(found.gains) == ["depth+hed", "hed", "depth", "canny", "none"]  # no oracle
    assert found.gains["hed"] == pytest.approx((0.03, 0.09), abs=1e-3)
    assert found.verdict == "cheap predicts the ranking of costly."
    assert re.search(r"\| depth\+hed +\| \+0.040", found.as_markdown())


def test_the_opposite_order_is_a_warning_and_its_regret_is_told() -> None:
    found = compare_studies(_study("cheap", GAINS), _study("costly", {k: -v for k, v in GAINS.items()}))
    assert found.tau.mean == -1
    assert found.regret == pytest.approx(0.04, abs=1e-3)
    assert "the other way round" in found.verdict


def test_one_study_on_two_machines_tells_the_least_difference() -> None:
    """The machine moves every gain by 0.002, up or down."""
    other = {name: gain + (0.002 if name in ("canny", "hed") else -0.002) for name, gain in GAINS.items()}
    found = compare_studies(_study("here", GAINS, spread=1e-9), _study("there", other | {"none": 0.0}, spread=1e-9))
    assert found.moved == pytest.approx(0.002, rel=1e-3)
    assert "by 0.002 (root mean square)" in found.as_markdown()
    assert "study.least_difference: 0.004." in found.as_markdown()


def test_noise_predicts_nothing() -> None:
    same = dict.fromkeys(GAINS, 0.0)
    found = compare_studies(_study("cheap", same, spread=0.05), _study("costly", GAINS))
    assert found.tau.low < 0 < found.tau.high
    assert "is not shown" in found.verdict


def test_the_scale_is_how_well_single_seeds_of_the_other_agree() -> None:
    sure = compare_studies(_study("cheap", GAINS), _study("costly", GAINS, (5, 6, 7)))
    assert sure.own == 1
    assert "single seeds of costly predict one another with a tau of +1.00" in sure.as_markdown()
    unsure = compare_studies(_study("cheap", GAINS), _study("costly", GAINS, tuple(range(9)), spread=5.0))
    assert unsure.own == pytest.approx(0, abs=0.35)
    alone = compare_studies(_study("cheap", GAINS), _study("costly", GAINS, (5,)))
    assert alone.own is None and "costly has one seed" in alone.as_markdown()


def test_combinations_of_one_study_alone_are_left_out() -> None:
    few = {k: v for k, v in GAINS.items() if k != "canny"}
    assert "canny" not in compare_studies(_study("cheap", GAINS), _study("costly", few)).gains


def test_what_cannot_be_compared_is_refused() -> None:
    cheap, costly = _study("cheap", GAINS), _study("costly", GAINS)
    with pytest.raises(UsageError, match="judged by gmsd .* by psnr_y"):
        compare_studies(cheap, replace(costly, study=replace(costly.study, primary_metric="psnr_y")))
    runs = tuple(replace(run, rows=[{**row, "key": f"other{row['key']}"} for row in run.rows]) for run in costly.runs)
    with pytest.raises(UsageError, match="only the same images"):
        compare_studies(cheap, replace(costly, runs=runs))
