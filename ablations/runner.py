"""Runs a study: one process per training, side by side on this machine's slots; what is finished is not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ablations.jobs import Job, plan_jobs
from ablations.launch.local import Event, Send, Task, run_tasks
from ablations.launch.slots import Slot
from ablations.ledger import Ledger
from ablations.plan import Components, RunPlan, default_components, plan_runs, read_recipe
from ablations.progress import StudyTable
from ablations.registry import Study
from ablations.results import RunResult, StudyResult, read_finished
from ablations.studies import get_study
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.protocol import WEIGHT_FREE_V1, Protocol
from megasr.files import locked_folder, write_whole

STUDY_FILE = "study.txt"  # whose folder it is
Hear = Callable[[Event], None]


@dataclass(frozen=True)
class OpenStudy:
    """A planned study and its folder.

    Attributes:
        study: the question.
        plans: every run, bicubic first.
        output: folder of the run folders.
        group: id of study and recipe; W&B groups the runs by it.
        protocol: how the numbers are taken.
        components: classes the config builds.
    """

    study: Study
    plans: tuple[RunPlan, ...]
    output: Path
    group: str
    protocol: Protocol
    components: Components

    @property
    def finished(self) -> dict[str, RunResult]:
        """Run id -> result of the runs that are finished, in the order of the plan.

        Raises:
            MegaSRError: a result is there and cannot be read.
        """
        found = {plan.run_id: read_finished(plan, self.protocol, self.output / plan.run_id) for plan in self.plans}
        return {run_id: result for run_id, result in found.items() if result is not None}

    @property
    def jobs(self) -> list[Job]:
        """What is left to do."""
        return plan_jobs(self.plans, list(self.finished))

    def run(self, slots: Sequence[Slot], retries: int = 1) -> StudyResult:
        """Do what is left, under `output/<run_id>/`.

        Args:
            slots: where trainings run side by side.
            retries: how often a training is started again whose process has died.

        Raises:
            UsageError: a config does not fit.
            MegaSRError: another process works in `output`, or bicubic, which every run is checked against, cannot be
                measured. Any other run that fails is named in the result, and the study goes on.
        """
        return self.driven(lambda: self._work().all(self.jobs, slots, retries))

    def driven(self, launch: Callable[[], Mapping[str, str]]) -> StudyResult:
        """Do what is left by a launcher, which returns run id -> reason of the runs that failed; see run.

        Raises:
            UsageError: `output` is another study's.
            MegaSRError: another driver works in `output`, or the launcher cannot go on.
        """
        with self.claimed():
            reused = tuple(self.finished)
            failed = launch() if self.jobs else {}
        return self.result(reused, failed)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the only driver that works in `output`. A folder is one study's: its report would replace the other's.

        Raises:
            UsageError: `output` is another study's.
            MegaSRError: another driver works in `output`.
        """
        with locked_folder(self.output):
            path = self.output / STUDY_FILE
            owner = path.read_text().strip() if path.is_file() else self.study.name
            if owner != self.study.name:
                raise UsageError(f"{self.output} holds study {owner}; give {self.study.name} a folder of its own")
            write_whole(path, f"{owner}\n".encode())
            yield

    def run_one(self, run_id: str, slot: Slot, retries: int = 1, hear: Hear | None = None) -> dict[str, str]:
        """Do one training and what rests on it, beside other processes that do others of the same study.

        Args:
            run_id: the run that hosts the training, or one that rests on it.
            slot: where.
            retries: see run.
            hear: is told what happens.

        Returns:
            Run id -> reason of runs that failed; empty when nothing is left to do.

        Raises:
            UsageError: the study has no such run, or a config does not fit.
            MegaSRError: bicubic is not measured yet, or cannot be.
        """
        plans = {plan.run_id: plan for plan in self.plans}
        if run_id not in plans:
            raise UsageError(f"study {self.study.name} has no run {run_id!r} with this recipe; see `megasr study plan`")
        jobs = [job for job in self.jobs if job.host.training == plans[run_id].training]
        baseline = self.plans[0]
        if jobs and run_id != baseline.run_id and baseline.run_id not in self.finished:
            raise MegaSRError(f"run {baseline.run_id} comes first: every other one is checked against it")
        return self._work().all(jobs, [slot], retries, hear) if jobs else {}

    def unfinished(self, job: Job) -> list[str]:
        """The runs of a job that have no result."""
        runs = [plan for plan in job.todo if read_finished(plan, self.protocol, self.output / plan.run_id) is None]
        return [plan.run_id for plan in runs]

    def failures(self, job: Job, event: Event, tell: Callable[[str], None]) -> dict[str, str]:
        """Run id -> reason of the runs of a failed job that have no result; each is told.

        Raises:
            UsageError: what stops the study: a config does not fit.
            MegaSRError: the same: bicubic cannot be measured.
        """
        error = event.details["error"]
        if isinstance(error, UsageError):
            raise UsageError(f"run {event.task}: {error}") from error
        if job.host.seed is None:
            raise MegaSRError(f"run {event.task}: {error}; no other run can be checked without it") from error
        reason = " ".join(str(error).split())
        lost = self.unfinished(job)
        for run_id in lost:
            tell(f"run {run_id} failed: {reason}")
        return dict.fromkeys(lost, reason)

    def _work(self) -> _Work:
        return _Work(self, Evaluator(self.protocol), self.output / self.plans[0].run_id)

    def result(self, reused: Sequence[str] | None = None, failed: Mapping[str, str] | None = None) -> StudyResult:
        """What is finished. Nothing is new unless said."""
        runs = self.finished
        reused = tuple(runs) if reused is None else tuple(reused)
        return StudyResult(
            self.study, self.protocol, tuple(runs.values()), self.output, self.group, reused, failed or {}
        )


def open_study(
    study: str | Study,
    config: Path,
    output: Path,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    *,
    protocol: Protocol = WEIGHT_FREE_V1,
    components: Components | None = None,
) -> OpenStudy:
    """Plan a study; nothing is run or written.

    Args:
        study: a study, or the name of a registered one.
        config: the recipe.
        output: folder of the run folders.
        seeds: instead of the recipe's study.seeds.
        steps: instead of the recipe's trainer.max_steps.
        protocol: how the numbers are taken.
        components: classes the config builds; the project's own by default.

    Raises:
        UsageError: unknown study, a recipe that is not for it, or a protocol that does not measure the study's primary
            metric.
    """
    chosen = get_study(study) if isinstance(study, str) else study
    protocol.metric(chosen.primary_metric)  # before hours of runs that could not answer the question
    components = components or default_components()
    recipe = read_recipe(config, components, steps)
    if recipe.study != chosen.name:
        raise UsageError(f"{config} is a recipe for study {recipe.study!r}, not for {chosen.name!r}")
    chosen = replace(chosen, least_difference=recipe.least_difference)
    plans = plan_runs(chosen, recipe, components, seeds)
    group = f"{chosen.name}-{hashlib.blake2b(json.dumps(recipe.config).encode(), digest_size=4).hexdigest()}"
    return OpenStudy(chosen, tuple(plans), output, group, protocol, components)


@dataclass(frozen=True)
class _Work:
    """What the processes of one study share."""

    study: OpenStudy
    evaluator: Evaluator
    baseline: Path

    def all(self, jobs: Sequence[Job], slots: Sequence[Slot], retries: int, hear: Hear | None = None) -> dict[str, str]:
        """Do all jobs, bicubic before the others. Returns run id -> reason, in one line, of runs that failed."""
        from rich.console import Console

        import ablations.execute  # noqa: F401  here, not in every process: that takes seconds

        ledger, table = Ledger(self.study.output), StudyTable(Console())
        failed: dict[str, str] = {}
        for job in jobs:
            table.add(job.host.run_id, job.label, len(job.todo), job.host.max_steps)
        first, rest = [job for job in jobs if job.host.seed is None], [job for job in jobs if job.host.seed is not None]
        with table.shown():
            for stage in (first, rest):
                by_name = {job.host.run_id: job for job in stage}
                for event in run_tasks([self._task(job) for job in stage], slots, retries):
                    table.heard(event)
                    if hear is not None:
                        hear(event)
                    if event.kind == "tell":
                        table.tell(event.details["line"])
                    elif event.kind != "step":
                        ledger.add(event)
                    if event.kind == "failed":
                        failed |= self.study.failures(by_name[event.task], event, table.tell)
        return failed

    def _task(self, job: Job) -> Task:
        folder = self.study.output / job.host.run_id

        def work(send: Send) -> None:
            with locked_folder(folder):  # a driver on another machine may have been given the same training
                self._do(job, folder, send)

        return Task(job.host.run_id, work, folder)

    def _do(self, job: Job, folder: Path, send: Send) -> None:
        """In a process of its own: the training, and one evaluation after the other."""
        from ablations.execute import execute_baseline, execute_run
        from ablations.held_out import HeldOut
        from ablations.tracking import Tracker

        components = self.study.components
        if job.host.seed is None:
            execute_baseline(job.host, components, self.evaluator, folder)
            return
        held_out = HeldOut()
        tracker = Tracker(self.study.group, lambda line: send("tell", line=line))
        for number, plan in enumerate(job.todo):
            send("run", number=number, run=plan.run_id)
            execute_run(
                plan,
                components,
                self.evaluator,
                self.study.output / plan.run_id,
                self.baseline,
                tracker,
                lambda step, loss: send("step", step=step, loss=loss),
                folder,
                held_out,
            )
