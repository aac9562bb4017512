"""What a study still has to do, cut into trainings: each is one job, with all runs that rest on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ablations.plan import RunPlan


@dataclass(frozen=True)
class Job:
    """A training and the runs that rest on it, done one after the other in one process.

    Attributes:
        host: the run in whose folder the training lies.
        todo: the runs that are not finished.
    """

    host: RunPlan
    todo: tuple[RunPlan, ...]

    @property
    def label(self) -> str:
        """For people."""
        if self.host.seed is None:
            return self.host.ablation
        others = f" (and {len(self.todo) - 1} that share its training)" if len(self.todo) > 1 else ""
        return f"{self.host.ablation} seed {self.host.seed}{others}"


def plan_jobs(plans: Sequence[RunPlan], finished: Sequence[str]) -> list[Job]:
    """The trainings that runs still need, in the order of the plan; bicubic is a job of its own, and the first."""
    hosts: dict[str, RunPlan] = {}
    todo: dict[str, list[RunPlan]] = {}
    for plan in plans:
        hosts.setdefault(plan.training, plan)
        if plan.run_id not in finished:
            todo.setdefault(plan.training, []).append(plan)
    return [Job(hosts[training], tuple(runs)) for training, runs in todo.items()]
