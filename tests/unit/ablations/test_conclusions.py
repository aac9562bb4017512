"""What the report says of hand-made numbers: verdicts, controls, and notes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ablations.conclusions import Report, make_report
from ablations.plan import BICUBIC
from ablations.registry import Ablation, Study
from ablations.report import _csv, _markdown
from ablations.results import RunResult, StudyResult
from ablations.statistics import holm
from megasr.errors import UsageError
from megasr.evaluation.protocol import WEIGHT_FREE_V1, Protocol
from megasr.rng import numpy_generator

PROTOCOL = Protocol("two", 1, (WEIGHT_FREE_V1.metrics[0], WEIGHT_FREE_V1.metrics[2]))  # psnr_y up, gmsd down
PHOTOS = 20


def _ablation(name: str) -> Ablation:
    return Ablation(name, {"a": name}, ("a",), "")


STUDY = Study(
    "made_up",
    "Does it help?",
    _ablation("none"),
    (_ablation("good"), _ablation("noise"), _ablation("oracle")),
    {"noise": "negative", "oracle": "positive"},
)


def _run(ablation: str, seed: int | None, gain: float, photos: int = PHOTOS) -> RunResult:
    """A run whose PSNR is `gain` above, and whose GMSD is gain / 100 below, a noisy level."""
    noise = numpy_generator(0, "scores", ablation, seed or 0).normal(size=(photos, 2)) * 0.05
    rows = [
        {"key": f"p{i}/0-0", "psnr_y": 25 + i + gain + noise[i, 0], "gmsd": 0.2 - (gain + noise[i, 1]) / 100}
        for i in range(photos)
    ]
    means = {name: sum(row[name] for row in rows) / photos for name in PROTOCOL.metric_names}
    about = {"name": PROTOCOL.name, "fingerprint": PROTOCOL.fingerprint}
    return RunResult(
        f"{ablation}-{seed}", STUDY.name, ablation, seed, "f", about, rows, means, 1, 1.0, 1.0, "cpu", "c0", {}, None
    )


def _result(study: Study = STUDY, seeds: int = 2, photos: int = PHOTOS, **gains: float) -> StudyResult:
    levels = {"none": 0.0, "good": 0.0, "noise": 0.0, "oracle": 1.0} | gains
    bicubic = levels.pop(BICUBIC, -1.0)
    runs = [_run(name, seed, gain, photos) for seed in range(seeds) for name, gain in levels.items()]
    return StudyResult(study, PROTOCOL, (_run(BICUBIC, None, bicubic, photos), *runs), Path("out"), ())


def _verdict(report: Report, ablation: str, metric: str) -> str:
    comparison = report.comparison(ablation, "none", metric)
    assert comparison is not None
    return comparison.verdict


def test_direction_decides_what_is_better() -> None:
    report = make_report(_result(good=0.5))
    assert report.means["good"]["psnr_y"] > report.means["none"]["psnr_y"]
    assert report.means["good"]["gmsd"] < report.means["none"]["gmsd"]
    assert [_verdict(report, "good", metric) for metric in PROTOCOL.metric_names] == ["better", "better"]
    worse = make_report(_result(good=-0.5))
    assert [_verdict(worse, "good", metric) for metric in PROTOCOL.metric_names] == ["worse", "worse"]
    assert "good: better than none in psnr_y, gmsd." in report.findings
    assert "good: worse than none in psnr_y, gmsd." in worse.findings


def test_no_difference_is_not_claimed() -> None:
    report = make_report(_result())
    assert _verdict(report, "good", "psnr_y") == "undecided"
    assert "good: no difference to none is shown." in report.findings


def test_means_and_differences_are_over_seeds_and_images() -> None:
    result = _result(good=0.5)
    expected = sum(run.summary["psnr_y"] for run in result.of("good")) / 2
    report = make_report(result)
    assert report.means["good"]["psnr_y"] == expected
    comparison = report.comparison("good", "none", "psnr_y")
    assert comparison is not None
    assert comparison.interval.mean == pytest.approx(expected - report.means["none"]["psnr_y"])
    assert (comparison.interval.photographs, comparison.interval.seeds) == (PHOTOS, 2)


def test_bicubic_is_compared_with_every_row() -> None:
    report = make_report(_result(bicubic=2.0))
    assert _verdict(report, BICUBIC, "psnr_y") == "better"
    against = report.comparison("good", BICUBIC, "psnr_y")
    assert against is not None
    assert against.verdict == "worse"
    assert "At this budget none is worse than bicubic in psnr_y, gmsd." in report.notes
    assert not any("worse than bicubic" in note for note in make_report(_result()).notes)


def test_holm_covers_all_comparisons() -> None:
    report = make_report(_result(good=0.5))
    assert len(report.comparisons) == (4 + 3) * 2
    assert any("Holm over 14 comparisons" in note for note in report.notes)
    raw = [c.interval.p_value for c in report.comparisons]
    assert [c.p_holm for c in report.comparisons] == holm(raw) != raw


def test_a_negative_control_that_helps_spoils_the_study() -> None:
    report = make_report(_result(noise=0.5))
    assert report.trust == "Not trustworthy: the negative control noise helps (psnr_y, gmsd)."


def test_a_negative_control_that_hurts_does_not() -> None:
    assert make_report(_result(noise=-0.5)).trust.startswith("May be trusted: the negative control noise is not seen")


def test_a_positive_control_that_does_not_help_spoils_the_study() -> None:
    report = make_report(_result(oracle=-1.0))
    assert report.trust == "Not trustworthy: the positive control oracle does not help."


def test_a_missing_control_is_said() -> None:
    report = make_report(_result(replace(STUDY, controls={"noise": "negative"})))
    assert report.trust.startswith("Trust with care: the negative control noise is not seen to help; this study has no")
    assert "no positive (oracle) control" in report.trust


def test_the_notes_say_what_limits_the_answer() -> None:
    one_seed = make_report(_result(seeds=1)).notes
    assert any(note.startswith("One seed only") for note in one_seed)
    assert any(note.startswith("Few photographs or seeds") for note in make_report(_result(seeds=2)).notes)
    many = make_report(_result(seeds=5, photos=30)).notes
    assert not any(note.startswith(("One seed", "Few photographs")) for note in many)
    assert not any("too few" in note for note in many)
    few = make_report(_result(photos=6, good=5.0))
    assert any(note.startswith("6 photographs are too few for 14 comparisons") for note in few.notes)
    assert {c.verdict for c in few.comparisons} == {"undecided"}
    mixed = _result()
    mixed = replace(mixed, runs=(*mixed.runs[:-1], replace(mixed.runs[-1], commit="c1")))
    assert any("different code: c0, c1" in note for note in make_report(mixed).notes)


def test_runs_on_other_images_are_refused() -> None:
    result = _result()
    short = replace(result.runs[1], rows=result.runs[1].rows[:-1])
    with pytest.raises(UsageError, match="same images: p19/0-0"):
        make_report(replace(result, runs=(result.runs[0], short, *result.runs[2:])))


def test_the_report_is_the_same_every_time() -> None:
    assert make_report(_result(good=0.1)) == make_report(_result(good=0.1))


def test_tables_hold_verdicts_and_mark_controls() -> None:
    result = _result(good=0.5)
    report = make_report(result)
    markdown = _markdown(result, report)
    assert "| noise (negative control) |" in markdown
    assert "psnr_y ↑ | gmsd ↓" in markdown
    assert markdown.count("**better**") == 4  # good and oracle, in two metrics
    rows = [line.split(",") for line in _csv(report).splitlines()]
    assert {len(row) for row in rows} == {12}
    assert [row[-1] for row in rows if row[:2] == ["good", "gmsd"]] == ["better", "better"]  # than none, than bicubic
