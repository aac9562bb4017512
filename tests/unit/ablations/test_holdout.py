"""Which terms of the objective rule a metric out as the hold-out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ablations.evaluation import RECIPE, EvaluationSet
from ablations.holdout import check_holdout, optimises
from ablations.plan import RunPlan
from ablations.registry import Ablation, Study
from megasr.errors import UsageError
from megasr.evaluation.protocol import METRICS, get_protocol

STUDY = Study("s", "?", Ablation("none", {}, (), ""), (Ablation("a", {"x": 1}, ("x",), ""),), "psnr_y")
SETS = (EvaluationSet(RECIPE, get_protocol("paired-v1")),)


@pytest.mark.parametrize(
    ("term", "metric", "expected"),
    [
        ("lpips_vgg", "lpips", True),
        ("lpips_alex", "lpips", True),
        ("dists", "dists", True),
        ("l2", "psnr_y", True),
        ("l2", "psnr_rgb", True),
        ("l1", "lpips", False),
        ("lpips_vgg", "dists", False),
        ("gan", "fsim", False),
        ("fsim", "fsim", True),
    ],
)
def test_a_term_is_a_form_of_a_metric(term: str, metric: str, expected: bool) -> None:
    spec = METRICS[metric]
    assert optimises(term, spec) is expected
    assert optimises(term, replace(spec, name=f"photographs/{metric}")) is expected, "whatever set it is taken of"


def _plan(ablation: str, **terms: float) -> RunPlan:
    objective: dict[str, Any] = {"objective": {"kind": "one_step", "terms": terms}} if terms else {"objective": {}}
    return RunPlan(f"s-{ablation}", "s", ablation, 0, {"model": objective}, "f")


def test_a_metric_that_a_run_is_trained_on_is_refused() -> None:
    plans = [RunPlan("s-bicubic", "s", "bicubic", None, {"data": {}}, "f"), _plan("none"), _plan("a", l1=1, dists=0.5)]
    check_holdout(STUDY, SETS, plans)
    check_holdout(replace(STUDY, holdout_metric="lpips"), SETS, plans)
    with pytest.raises(UsageError, match="holdout_metric dists: run s-a is trained on objective.terms.dists, which"):
        check_holdout(replace(STUDY, holdout_metric="dists"), SETS, plans)
    check_holdout(replace(STUDY, holdout_metric="dists"), SETS, [*plans[:2], _plan("a", l1=1, dists=0)])
    with pytest.raises(UsageError, match="psnr_y is the primary metric"):
        check_holdout(replace(STUDY, holdout_metric="psnr_y"), SETS, plans)
