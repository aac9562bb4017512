"""What the report says of hand-made numbers: verdicts, controls, and notes."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ablations import conclusions
from ablations.conclusions import Comparison, Report, holdout_summary, make_report
from ablations.evaluation import RECIPE, EvaluationSet
from ablations.plan import BICUBIC
from ablations.registry import Ablation, Study
from ablations.results import RunResult, StudyResult, merge_results, tidy
from ablations.statistics import holm
from ablations.tables import comparison_frame, ranking_frame, summary_table
from ablations.where import where_it_helps
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.intervals import Interval, paired_bootstrap
from megasr.evaluation.protocol import WEIGHT_FREE_V1, Protocol
from megasr.images import write_png
from megasr.rng import numpy_generator

PROTOCOL = Protocol("two", 1, (WEIGHT_FREE_V1.metrics[0], WEIGHT_FREE_V1.metrics[2]))  # psnr_y up, gmsd down
PHOTOS = 20


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is what the report makes of the intervals, not their last digits."""
    monkeypatch.setattr(conclusions, "paired_bootstrap", partial(paired_bootstrap, resamples=1000))


def _ablation(name: str) -> Ablation:
    return Ablation(name, {"a": name}, ("a",), "")


STUDY = Study(
    "made_up",
    "Does it help?",
    _ablation("none"),
    (_ablation("good"), _ablation("noise"), _ablation("oracle")),
    "psnr_y",
    {"noise": "negative", "oracle": "positive"},
)


def _run(ablation: str, seed: int | None, gain: float, photos: int = PHOTOS) -> RunResult:
    """A run whose PSNR is `gain` above, and whose GMSD is gain / 100 below, a noisy level."""
    noise = numpy_generator(2, "scores", ablation, seed or 0).normal(size=(photos, 2)) * 0.05
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
    return StudyResult(
        study, (EvaluationSet(RECIPE, PROTOCOL),), (_run(BICUBIC, None, bicubic, photos), *runs), Path("out"), "g", ()
    )


def _comparison(report: Report, ablation: str, reference: str, metric: str) -> Comparison:
    comparison = report.comparison(ablation, reference, metric)
    assert comparison is not None
    return comparison


def _verdict(report: Report, ablation: str, metric: str) -> str:
    return _comparison(report, ablation, "none", metric).verdict


def test_direction_decides_what_is_better() -> None:
    report = make_report(_result(good=0.5))
    assert report.means["good"]["psnr_y"] > report.means["none"]["psnr_y"]
    assert report.means["good"]["gmsd"] < report.means["none"]["gmsd"]
    assert _verdict(report, "good", "psnr_y") == "better"
    worse = make_report(_result(good=-0.5))
    assert _verdict(worse, "good", "psnr_y") == "worse"
    assert "good: better than none in psnr_y; exploratory: lower gmsd." in report.findings
    assert "good: worse than none in psnr_y; exploratory: higher gmsd." in worse.findings
    down = replace(STUDY, primary_metric="gmsd")
    assert (
        "good: better than none in gmsd; exploratory: higher psnr_y." in make_report(_result(down, good=0.5)).findings
    )
    assert "good: worse than none in gmsd; exploratory: lower psnr_y." in make_report(_result(down, good=-0.5)).findings


@pytest.mark.parametrize("metric", ["psnr_y", "gmsd"])
def test_what_is_kept_of_the_positive_controls_gain_is_said(metric: str) -> None:
    study = replace(STUDY, primary_metric=metric)
    (line,) = (note for note in make_report(_result(study, good=0.5)).notes if note.startswith("Of what oracle gains"))
    share, low, high = (int(number) for number in re.search(r"good (\d+)% \[(\d+)%, (\d+)%\]", line).groups())  # type: ignore[union-attr]
    assert 40 < low < share < high < 60
    assert ", noise " in line and "oracle " not in line.partition(": ")[2]
    assert not any("Of what oracle" in note for note in make_report(_result(study, oracle=0.0, good=0.5)).notes)


def test_where_a_type_helps_is_told_by_what_its_maps_show(tmp_path: Path) -> None:
    made = _result()
    gains = [replace(run, rows=[{**row, "psnr_y": row["psnr_y"] + (i % 2)} for i, row in enumerate(run.rows)])
             if run.ablation in ("good", "noise") else run for run in made.runs]  # fmt: skip
    result = replace(made, runs=tuple(gains), output=tmp_path)
    assert where_it_helps(result) == [], "no maps were written"
    draws = numpy_generator(0, "maps")
    for run in result.runs:
        for i, row in enumerate(run.rows if run.ablation in ("good", "noise") else ()):
            pixels = draws.integers(256, size=(8, 8, 3)) if i % 2 else np.full((8, 8, 3), 9)
            write_png(pixels.astype(np.uint8), tmp_path / run.run_id / "maps" / f"{row['key']}.png")
    (line,) = where_it_helps(result)
    assert line in make_report(result).notes
    most, least = (float(number) for number in re.findall(r"([+-]\d+\.\d+) \[", line))
    assert line.startswith("Where good helps (differences in psnr_y, exploratory): ")
    assert "on the 10 images whose maps show most" in line
    assert most > 0.9 and abs(least) < 0.1
    folder = tmp_path / "good-0" / "maps"
    (folder / "p3" / "0-0.png").unlink()
    assert where_it_helps(result) == [
        f"Where good helps is not said: 1 of {len(result.runs[0].rows)} maps are not in {folder}."
    ]


def test_no_difference_is_not_claimed() -> None:
    report = make_report(_result())
    assert _verdict(report, "good", "psnr_y") == "undecided"
    assert "good: no difference to none in psnr_y is shown." in report.findings


def test_what_another_machine_would_turn_is_no_verdict() -> None:
    """good gains 0.1 here; with the rounding of another machine 0.12 or 0.05, as sure each time."""
    loose, strict = STUDY, replace(STUDY, least_difference=0.12)
    for gain in (0.12, 0.1):
        report = make_report(_result(loose, good=gain))
        assert _comparison(report, "good", "none", "psnr_y").interval.low > 0
        assert _verdict(report, "good", "psnr_y") == "better"
    assert {_verdict(make_report(_result(strict, good=gain)), "good", "psnr_y") for gain in (0.12, 0.1, 0.05)} == {
        "undecided"
    }
    assert _verdict(make_report(_result(strict, good=0.3)), "good", "psnr_y") == "better"
    assert _verdict(make_report(_result(strict, good=-0.3)), "good", "psnr_y") == "worse"
    assert _comparison(make_report(_result(strict)), "good", "none", "gmsd").least == 0  # of the primary metric


def test_the_quick_study_says_the_same_on_both_machines_of_which_its_numbers_are_known(root: Path) -> None:
    """Edges, on an AMD EPYC and on another CPU, and the positive control (README, Two commands)."""
    recipe = yaml.safe_load((root / "experiments" / "tiny" / "prior_selection_quick.yaml").read_text())

    def verdict(least: float, mean: float, low: float, high: float) -> str:
        sure = Interval(mean, low, high, 0.001 if low > 0 else 0.5, 24, 4)
        return Comparison("a", "none", "fsim", sure, 1, sure.p_value, least).verdict

    machines = (0.0003, 0.0001, 0.0005), (0.0004, -0.0008, 0.0016)
    assert [verdict(0, *numbers) for numbers in machines] == ["better", "undecided"]
    least = recipe["study"]["least_difference"]
    assert [verdict(least, *numbers) for numbers in machines] == ["undecided", "undecided"]
    assert verdict(least, 0.0075, 0.0040, 0.0119) == "better"


def test_controls_behave_by_more_than_a_machine_does() -> None:
    strict = replace(STUDY, least_difference=0.12)
    assert make_report(_result(noise=0.1)).trust.startswith("Not trustworthy: the negative control noise helps")
    assert make_report(_result(strict, noise=0.1)).trust.startswith("May be trusted")
    trust = make_report(_result(strict, oracle=0.1)).trust
    assert trust == "Not trustworthy: the positive control oracle does not help in psnr_y."


def test_the_notes_say_what_a_verdict_is_worth_on_another_machine() -> None:
    notes = make_report(_result(replace(STUDY, least_difference=0.12))).notes
    assert "better/worse means that the interval lies beyond 0.12 and p < 0.05" in notes[0]
    assert notes[1].startswith("The same trainings on another machine may move a difference by 0.12 psnr_y (measured;")
    unknown = make_report(_result()).notes
    assert "better/worse means that the interval excludes zero and p < 0.05" in unknown[0]
    assert unknown[1].startswith(
        "How far another machine (CPU, GPU, libraries) would move these differences is not known"
    )


def test_two_seeds_that_agree_by_chance_prove_nothing_where_those_of_other_ablations_differ() -> None:
    """good gains 0.5 with both seeds; noise and oracle move by +-1 from seed to seed, as good's next seed would."""
    result = _result(good=0.5)
    moved = {("noise", 0): 1.0, ("noise", 1): -1.0, ("oracle", 0): -1.0, ("oracle", 1): 1.0}
    runs = tuple(
        _run(r.ablation, r.seed, moved[r.ablation, r.seed]) if (r.ablation, r.seed) in moved else r for r in result.runs
    )
    assert _verdict(make_report(result), "good", "psnr_y") == "better"
    assert _verdict(make_report(replace(result, runs=runs)), "good", "psnr_y") == "undecided"


def test_means_and_differences_are_over_seeds_and_images() -> None:
    result = _result(good=0.5)
    expected = sum(run.summary["psnr_y"] for run in result.of("good")) / 2
    report = make_report(result)
    assert report.means["good"]["psnr_y"] == expected
    comparison = _comparison(report, "good", "none", "psnr_y")
    assert comparison.interval.mean == pytest.approx(expected - report.means["none"]["psnr_y"])
    assert (comparison.interval.photographs, comparison.interval.seeds) == (PHOTOS, 2)


def test_bicubic_is_compared_with_every_row() -> None:
    report = make_report(_result(bicubic=2.0))
    assert len(report.comparisons) == (4 + 3) * 2
    assert _comparison(report, BICUBIC, "none", "psnr_y").leans_better
    assert _comparison(report, "good", BICUBIC, "psnr_y").interval.high < 0
    assert "At this budget bicubic has higher psnr_y, lower gmsd than none (exploratory)." in report.notes
    assert not any("At this budget" in note for note in make_report(_result()).notes)


def test_holm_covers_the_primary_question_and_nothing_else() -> None:
    report = make_report(_result(good=0.5))
    family = [c for c in report.comparisons if c.p_holm is not None]
    asked = [(name, "none", "psnr_y") for name in ("good", "noise", "oracle")]
    assert [(c.ablation, c.reference, c.metric) for c in family] == asked
    raw = [c.interval.p_value for c in family]
    assert [c.p_holm for c in family] == holm(raw) != raw
    assert any("Holm's correction over 3 comparisons" in note for note in report.notes)


def test_exploratory_comparisons_are_never_judged() -> None:
    report = make_report(_result(good=5.0, bicubic=-5.0))
    rest = [c for c in report.comparisons if (c.reference, c.metric) != ("none", "psnr_y") or c.ablation == BICUBIC]
    assert len(rest) == 14 - 3
    assert {c.verdict for c in rest} == {"exploratory"}
    assert _comparison(report, "good", "none", "gmsd").interval.excludes_zero


def test_photographs_are_counted_by_the_set_of_the_metric() -> None:
    """The hold-out is measured on another set, of fewer photographs and seeds; the limits are those of the primary."""
    sets = (EvaluationSet("small", PROTOCOL), EvaluationSet("own", PROTOCOL, limit=9))
    study = replace(STUDY, primary_metric="own/psnr_y", holdout_metric="small/gmsd")
    of_sets = [_result(study, seeds, photos, good=0.02) for seeds, photos in ((2, 3), (3, PHOTOS))]
    small, own = ({run.run_id: run for run in result.runs} for result in of_sets)
    runs = [merge_results(sets, {"own": own[i]} | ({"small": small[i]} if i in small else {})) for i in own]
    report = make_report(replace(of_sets[0], sets=sets, runs=tuple(run for run in runs if run)))
    (counted,) = [note for note in report.notes if note.startswith("Intervals")]
    assert f"over {PHOTOS} photographs of own and 3 seed(s), 3 photographs of small and 2 seed(s), not" in counted
    assert not any("too few" in note for note in report.notes)
    (decide,) = [note for note in report.notes if note.startswith("What would decide")]
    assert "in own/psnr_y as large" in decide and "photographs of own" in decide and "of small" not in decide
    assert all("the hold-out metric small/gmsd" in finding for finding in report.findings)


def test_eight_photographs_can_decide_four_comparisons_and_seven_cannot() -> None:
    study = replace(STUDY, ablations=(*STUDY.ablations, _ablation("more")))
    enough = make_report(_result(study, seeds=1, photos=8, good=5.0, more=0.0))
    assert _verdict(enough, "good", "psnr_y") == "better"
    assert not any("too few" in note for note in enough.notes)
    few = make_report(_result(study, seeds=1, photos=7, good=5.0, more=0.0))
    assert _verdict(few, "good", "psnr_y") == "undecided"
    assert any(note.startswith("7 photographs are too few for 4 comparisons") for note in few.notes)


def test_a_primary_metric_that_is_not_measured_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown metric of protocol two 'psnr'; did you mean psnr_y"):
        make_report(_result(replace(STUDY, primary_metric="psnr")))


@pytest.mark.parametrize(
    ("study", "gains", "trust"),
    [
        (STUDY, {"noise": 0.5}, "Not trustworthy: the negative control noise helps in psnr_y."),
        (STUDY, {"noise": -0.5}, "May be trusted: the negative control noise is not seen"),
        (STUDY, {"oracle": -1.0}, "Not trustworthy: the positive control oracle does not help in psnr_y."),
        (replace(STUDY, controls={"noise": "negative"}), {}, "Trust with care: the negative control noise is not seen"),
        (replace(STUDY, controls={"oracle": "positive"}), {}, "Trust with care: the positive control oracle helps in"),
    ],
)  # fmt: skip
def test_controls_that_do_not_behave_spoil_the_study_and_missing_ones_are_said(
    study: Study, gains: dict[str, float], trust: str
) -> None:
    found = make_report(_result(study, **gains)).trust
    assert found.startswith(trust)
    for kind, name in (("positive", "positive (oracle)"), ("negative", "negative")):
        assert (f"no {name} control" in found) == (kind not in study.controls.values())


def test_a_negative_control_that_helps_elsewhere_is_named() -> None:
    result = _result()
    rows = [[{**row, "gmsd": row["gmsd"] - 0.1} for row in run.rows] for run in result.runs]
    runs = [replace(run, rows=r) if run.ablation == "noise" else run for run, r in zip(result.runs, rows, strict=True)]
    trust = make_report(replace(result, runs=tuple(runs))).trust
    assert "noise is not seen to help in psnr_y (but its interval lies on the good side of zero in gmsd)" in trust


def test_a_control_that_helps_only_uncorrected_is_not_said_to_do_nothing() -> None:
    many = tuple(_ablation(f"other{i}") for i in range(12))
    study = replace(STUDY, ablations=(*STUDY.ablations, *many))
    report = make_report(_result(study, seeds=1, photos=8, oracle=5.0, **{a.name: 0.0 for a in many}))
    assert _verdict(report, "oracle", "psnr_y") == "undecided"
    finding = next(line for line in report.findings if line.startswith("oracle: "))
    assert finding.startswith("oracle: a gain over none in psnr_y before the correction, which")
    decided = make_report(_result(seeds=1, photos=24, oracle=5.0)).findings
    assert any(line.startswith("oracle: better than none in psnr_y") and "correction" not in line for line in decided)


def test_the_notes_say_what_limits_the_answer() -> None:
    one_seed = make_report(_result(seeds=1)).notes
    assert any(note.startswith("One seed only") for note in one_seed)
    assert any(note.startswith("Few photographs or seeds") for note in make_report(_result(seeds=2)).notes)
    many = make_report(_result(seeds=5, photos=30)).notes
    assert not any(note.startswith(("One seed", "Few photographs")) for note in many)
    mixed = _result()
    mixed = replace(mixed, runs=(*mixed.runs[:-1], replace(mixed.runs[-1], commit="c1")))
    assert any("different code: c0, c1" in note for note in make_report(mixed).notes)


def test_runs_on_other_images_are_refused() -> None:
    result = _result()
    short = replace(result.runs[1], rows=result.runs[1].rows[:-1])
    with pytest.raises(UsageError, match="same images: p19/0-0"):
        make_report(replace(result, runs=(result.runs[0], short, *result.runs[2:])))


def test_only_seeds_that_all_have_are_compared() -> None:
    result = _result(seeds=3, good=0.5)
    lost = replace(result, runs=tuple(r for r in result.runs if (r.ablation, r.seed) != ("good", 1)), failed={"x": "y"})
    assert lost.seeds == [0, 2]
    report = make_report(lost)
    assert {c.interval.seeds for c in report.comparisons} == {2}
    assert (
        report.means["none"]["psnr_y"]
        == (result.of("none")[0].summary["psnr_y"] + result.of("none")[2].summary["psnr_y"]) / 2
    )
    (left_out,) = (note for note in report.notes if note.startswith("Only seed(s) 0, 2 are compared. Left out"))
    assert left_out.endswith(": none-1, noise-1, oracle-1.")
    assert "Failed: x (y)." in report.notes
    assert not any("Only seed" in note or "Failed" in note for note in make_report(result).notes)
    nothing = replace(lost, runs=tuple(r for r in result.runs if r.ablation != "good"))
    with pytest.raises(MegaSRError, match="no seed is finished for every ablation"):
        make_report(nothing)


def test_the_report_is_the_same_every_time() -> None:
    assert make_report(_result(good=0.1)) == make_report(_result(good=0.1))


def test_tables_hold_verdicts_and_mark_controls() -> None:
    result = _result(good=0.5)
    report = make_report(result)
    markdown = summary_table(result, report).markdown()
    assert "| noise (negative control) " in markdown
    assert re.search(r"\| +psnr\\_y ↑ primary +\| +gmsd ↓ +\|", markdown)
    assert markdown.count(" better<br>") == 2  # good and oracle, in the primary metric
    assert markdown.count(" undecided<br>") == 1  # noise
    assert markdown.count(" *<br>") == 4  # good and oracle in the other metric, bicubic in both
    assert "<br>[" not in summary_table(result, report, intervals=False).markdown()
    rows = comparison_frame(report)
    good = rows[(rows["row"] == "good") & (rows["reference"] == "none")]
    assert good[["metric", "verdict", "excludes_zero"]].values.tolist() == [
        ["psnr_y", "better", True],
        ["gmsd", "exploratory", True],
    ]
    assert good["p_holm"].isna().tolist() == [False, True]
    assert rows[rows["row"] == "none"]["difference"].isna().tolist() == [True, True]


def test_the_primary_metric_is_the_first_column() -> None:
    result = _result(replace(STUDY, primary_metric="gmsd"))
    columns = list(summary_table(result, make_report(result)).cells)
    assert columns == ["", "gmsd ↓\nprimary", "psnr_y ↑"]


def test_the_ranking_is_turned_so_that_more_is_better() -> None:
    result = _result(replace(STUDY, primary_metric="gmsd"), good=0.5, noise=-0.5)
    ranking = ranking_frame(result, make_report(result)).set_index("label")
    assert list(ranking.index) == ["oracle", "good", "none", "noise"]
    assert ranking.loc["good", "difference"] == pytest.approx(0.005, abs=1e-3)
    assert ranking.loc["good", "low"] < ranking.loc["good", "difference"] < ranking.loc["good", "high"]
    assert ranking["verdict"].to_list() == ["control: gain", "better", "reference", "control: no gain"]
    assert ranking.loc["oracle", "wins"] == 1 and pd.isna(ranking.loc["none", "wins"])
    assert ranking.loc["noise", "cost_s"] == 2.0
    assert list(ranking)[-2:] == ["gmsd", "psnr_y"]


def test_scores_are_tidy() -> None:
    result = _result()
    scores = tidy(result)
    assert list(scores) == ["run_id", "ablation", "seed", "key", "metric", "value"]
    assert len(scores) == len(result.runs) * PHOTOS * 2
    one = scores.query("ablation == 'good' and seed == 1 and key == 'p3/0-0' and metric == 'gmsd'")
    assert one["value"].item() == result.of("good")[1].rows[3]["gmsd"]
    assert scores[scores["ablation"] == BICUBIC]["seed"].isna().all()


def test_a_holdout_metric_is_compared_in_sign() -> None:
    """good gains PSNR; its GMSD is made to fall or to rise with it."""
    study = replace(STUDY, holdout_metric="gmsd")
    agreeing = _result(study, good=0.5, noise=0.2)
    report = make_report(agreeing)
    assert "good: better than none in psnr_y; the hold-out metric gmsd agrees in sign" in report.findings[0]
    assert "agrees with psnr_y in the sign of 3 of 3 differences." in holdout_summary(study, report.comparisons)
    assert not [note for note in report.notes if note.startswith("Warning")]
    assert holdout_summary(STUDY, report.comparisons) == ""

    def gamed(run: RunResult) -> RunResult:
        rows = [{**row, "gmsd": row["gmsd"] + 0.02} for row in run.rows]
        return replace(run, rows=rows) if run.ablation == "good" else run

    fooled = replace(agreeing, runs=tuple(map(gamed, agreeing.runs)))
    report = make_report(fooled)
    assert "good: better than none in psnr_y; the hold-out metric gmsd disagrees in sign" in report.findings[0]
    assert "2 of 3 differences; it disagrees in good." in holdout_summary(study, report.comparisons)
    (warning,) = [note for note in report.notes if note.startswith("Warning")]
    assert "hold-out metric gmsd has the other sign than psnr_y for good" in warning
    (warning,) = [n for n in make_report(replace(fooled, study=STUDY)).notes if n.startswith("Warning")]
    assert warning.endswith("psnr_y, and both intervals exclude zero: good (gmsd).")

    def scattered(run: RunResult) -> RunResult:
        rows = [{**row, "gmsd": row["gmsd"] + 0.2 * (-1) ** i} for i, row in enumerate(run.rows)]
        return replace(run, rows=rows) if run.ablation == "good" else run

    report = make_report(replace(fooled, runs=tuple(map(scattered, fooled.runs))))
    assert "the hold-out metric gmsd disagrees in sign (undecided)" in report.findings[0]
    assert not [note for note in report.notes if note.startswith("Warning")]


def test_metrics_are_compared_over_the_seeds_that_have_them() -> None:
    whole = _result(seeds=3, good=0.5)

    def without_gmsd(run: RunResult) -> RunResult:
        if (run.ablation, run.seed) != ("good", 1):
            return run
        rows = [{"key": row["key"], "psnr_y": row["psnr_y"]} for row in run.rows]
        return replace(run, rows=rows, summary={"psnr_y": run.summary["psnr_y"]})

    partial_result = replace(whole, runs=tuple(map(without_gmsd, whole.runs)))
    assert (partial_result.seeds, partial_result.seeds_of("gmsd")) == ([0, 1, 2], [0, 2])
    report = make_report(partial_result)
    assert _comparison(report, "good", "none", "psnr_y").interval.seeds == 3
    assert _comparison(report, "noise", "none", "gmsd").interval.seeds == 2
