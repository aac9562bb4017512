"""The hold-out metric: one that neither the objective nor the verdicts use, to tell a gain from a metric that is gamed.

What optimises a metric improves it, whatever the pictures do (Goodhart's law). So a study may name one metric that
nothing in it aims at; where it contradicts the primary metric, the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from ablations.evaluation import EvaluationSet, study_metrics
from ablations.plan import RunPlan
from ablations.registry import Study
from megasr.errors import UsageError
from megasr.evaluation.protocol import MetricSpec

# Term of objective.terms -> the metric that it is a form of; any other term is one of the metric of its own name.
_FORMS = {"lpips_alex": "lpips", "lpips_vgg": "lpips", "l2": "psnr"}


def optimises(term: str, metric: MetricSpec) -> bool:
    """Whether a term of the loss is a form of a metric: lpips_vgg of lpips, l2 of every PSNR, dists of dists."""
    form, names = _FORMS.get(term, term), (metric.pyiqa_name, metric.name.rpartition("/")[2])
    return any(name == form or name.startswith((f"{form}-", f"{form}_")) for name in names)


def check_holdout(study: Study, sets: Sequence[EvaluationSet], plans: Sequence[RunPlan]) -> None:
    """Refuse a hold-out metric that is none.

    Raises:
        UsageError: it is the primary metric, or a run's objective has a term of it.
    """
    if (name := study.holdout_metric) is None:
        return
    if name == study.primary_metric:
        raise UsageError(f"study.holdout_metric {name} is the primary metric: name another, which decides nothing")
    metric = study_metrics(sets)[name][1]
    for plan in plans:
        objective = plan.config.get("model", {}).get("objective") or {}
        for term, weight in (objective.get("terms") or {}).items():
            if weight and optimises(term, metric):
                raise UsageError(
                    f"study.holdout_metric {name}: run {plan.run_id} is trained on objective.terms.{term}, which "
                    "optimises it; name a metric that no run is trained on"
                )
