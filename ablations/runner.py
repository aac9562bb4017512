"""Runs a study: one process per training, by an executor; what is finished is not run again."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ablations.launch.local import Event, Executor, LocalExecutor, Outbox, Slot, Task
from ablations.plan import Components, RunPlan, default_components, plan_runs, read_recipe
from ablations.progress import StudyProgress, say
from ablations.registry import Study
from ablations.results import RunResult, StudyResult, read_finished
from ablations.studies import get_study
from megasr.console import quiet_warnings
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.protocol import Protocol, get_protocol
from megasr.files import locked_folder, write_whole

STUDY_FILE = "study.txt"  # whose folder it is


@dataclass(frozen=True)
class Job:
    """A training and the unfinished runs that rest on it, done one after the other in one process.

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
        weights_dir: where weights of metrics are looked for first.
    """

    study: Study
    plans: tuple[RunPlan, ...]
    output: Path
    group: str
    protocol: Protocol
    components: Components
    weights_dir: Path | None = None

    @property
    def finished(self) -> dict[str, RunResult]:
        """Run id -> result of the finished runs, in the order of the plan.

        Raises:
            MegaSRError: a result cannot be read.
        """
        results = {plan.run_id: self.read(plan) for plan in self.plans}
        return {run_id: result for run_id, result in results.items() if result is not None}

    def read(self, plan: RunPlan) -> RunResult | None:
        """The result of a run, None when it is not finished."""
        return read_finished(plan, self.protocol, self.output / plan.run_id)

    @property
    def baseline(self) -> RunPlan:
        """Bicubic, against whose lq every run is checked."""
        return self.plans[0]

    @property
    def jobs(self) -> list[Job]:
        """The trainings that unfinished runs need, in the order of the plan; bicubic is a job of its own, the first."""
        finished, hosts, todo = self.finished, dict[str, RunPlan](), dict[str, list[RunPlan]]()
        for plan in self.plans:
            hosts.setdefault(plan.training, plan)
            if plan.run_id not in finished:
                todo.setdefault(plan.training, []).append(plan)
        return [Job(hosts[training], tuple(runs)) for training, runs in todo.items()]

    @property
    def devices(self) -> int:
        """Devices that a training asks for."""
        return max(plan.processes for plan in self.plans)

    def run(self, executor: Executor) -> StudyResult:
        """Do what is left, under `output/<run_id>/`: bicubic here, the trainings by the executor.

        Raises:
            UsageError: a config does not fit, or `output` is another study's.
            MegaSRError: another process works in `output`, or bicubic cannot be measured. Any other run that fails is
                named in the result, and the study goes on.
        """
        with self.claimed():
            reused = tuple(self.finished)
            self.run_baseline()
            jobs = self.jobs
            failed = self._run(jobs, executor) if jobs else {}
        return self.result(reused, failed)

    def run_baseline(self) -> None:
        """Measure bicubic, unless that is done. Raises as run."""
        for job in self.jobs[:1]:
            if job.host is self.baseline:
                self._run([job], LocalExecutor([Slot("cpu", os.cpu_count() or 1, {"CUDA_VISIBLE_DEVICES": ""})]))

    def run_one(self, run_id: str, executor: Executor) -> dict[str, str]:
        """Do one training and the runs that rest on it, beside other processes that do others of the same study.

        Args:
            run_id: the run that hosts the training, or one that rests on it.
            executor: where.

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
        if jobs and run_id != self.baseline.run_id and self.read(self.baseline) is None:
            raise MegaSRError(f"run {self.baseline.run_id} comes first: every other one is checked against it")
        return self._run(jobs, executor) if jobs else {}

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

    def result(self, reused: Sequence[str] | None = None, failed: Mapping[str, str] | None = None) -> StudyResult:
        """What is finished; all of it was before, unless `reused` says otherwise."""
        runs = self.finished
        reused = tuple(runs) if reused is None else tuple(reused)
        return StudyResult(
            self.study, self.protocol, tuple(runs.values()), self.output, self.group, reused, failed or {}
        )

    def _run(self, jobs: Sequence[Job], executor: Executor) -> dict[str, str]:
        """Run id -> reason, in one line, of the runs of these jobs that failed."""
        import ablations.execute  # noqa: F401  once, in the process that is forked

        failed: dict[str, str] = {}
        by_name = {job.host.run_id: job for job in jobs}
        steps = {name: (job.label, job.host.max_steps) for name, job in by_name.items()}
        tasks = [Task(name, StudyWork(self, job), self.output / name) for name, job in by_name.items()]
        with StudyProgress(steps) as progress:
            for event in executor.run(tasks):
                progress.show(event)
                if event.kind == "failed":
                    failed |= self._failures(by_name[event.task], event)
        return failed

    def _failures(self, job: Job, event: Event) -> dict[str, str]:
        """Run id -> reason of the unfinished runs of a failed job. Raises what stops the whole study."""
        error = event.details["error"]
        if isinstance(error, UsageError):
            raise UsageError(f"run {event.task}: {error}") from error
        if job.host.seed is None:
            raise MegaSRError(f"run {event.task}: {error}; no other run can be checked without it") from error
        reason = " ".join(str(error).split())
        lost = [plan.run_id for plan in job.todo if self.read(plan) is None]
        for run_id in lost:
            say(f"run {run_id} failed: {reason}")
        return dict.fromkeys(lost, reason)


def open_study(
    study: str | Study,
    config: Path,
    output: Path,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    *,
    protocol: Protocol | None = None,
    components: Components | None = None,
) -> OpenStudy:
    """Plan a study; nothing is run or written.

    Args:
        study: a study, or the name of a registered one.
        config: the recipe.
        output: folder of the run folders.
        seeds: instead of the recipe's study.seeds.
        steps: instead of the recipe's trainer.max_steps.
        protocol: instead of the recipe's study.protocol.
        components: classes the config builds; the project's own by default.

    Raises:
        UsageError: unknown study, a recipe that is not for it, or a protocol that does not measure the study's primary
            metric.
    """
    components = components or default_components()
    recipe = read_recipe(config, components, steps)
    name = study.name if isinstance(study, Study) else study
    chosen = study if isinstance(study, Study) else recipe.declared or get_study(study)
    protocol = protocol or get_protocol(recipe.protocol)
    protocol.metric(chosen.primary_metric)  # before hours of runs that could not answer the question
    if recipe.study != name:
        raise UsageError(f"{config} is a recipe for study {recipe.study!r}, not for {name!r}")
    chosen = replace(chosen, least_difference=recipe.least_difference)
    plans = plan_runs(chosen, recipe, components, seeds)
    group = f"{chosen.name}-{hashlib.blake2b(json.dumps(recipe.config).encode(), digest_size=4).hexdigest()}"
    return OpenStudy(chosen, tuple(plans), output, group, protocol, components, recipe.weights_dir)


@dataclass(frozen=True)
class StudyWork:
    """A job of a study as a task: the training, and one evaluation after the other."""

    study: OpenStudy
    job: Job

    def is_done(self) -> bool:
        """Whether all of its runs are finished."""
        return all(self.study.read(plan) is not None for plan in self.job.todo)

    def __call__(self, send: Outbox) -> None:
        """Do it, in this process, or in as many as the recipe's trainer has devices."""
        if self.job.host.processes > 1:
            # Lightning starts the other processes with the command line of the first: it must be this job's alone.
            path = self.folder / "job.pickle"
            write_whole(path, pickle.dumps(self))
            send.become("ablations.runner", str(path))
        self.do(send)

    @property
    def folder(self) -> Path:
        """Where the training lies."""
        return self.study.output / self.job.host.run_id

    def do(self, send: Callable[..., None]) -> None:
        """Do what is not finished."""
        with locked_folder(self.folder):  # a driver on another machine may have been given the same training
            self._do(send)

    def _do(self, send: Callable[..., None]) -> None:
        from ablations.execute import execute_baseline, execute_run
        from ablations.tracking import Tracker

        study = self.study
        evaluator, baseline = (
            Evaluator(study.protocol, weights_dir=study.weights_dir),
            study.output / study.baseline.run_id,
        )
        tracker = Tracker(study.group, lambda line: send("message", line=line))

        def on_step(step: int, loss: float) -> None:
            send("step", step=step, loss=loss)

        for plan in self.job.todo:
            if study.read(plan) is not None:
                continue
            if plan.seed is None:
                execute_baseline(plan, study.components, evaluator, self.folder)
                continue
            own = study.output / plan.run_id
            if execute_run(plan, study.components, evaluator, own, baseline, tracker, on_step, self.folder) is None:
                return  # of several processes only the first one measures
            send("run", run=plan.run_id)


def main() -> None:
    """Do one job: `python -m ablations.runner JOB.pickle PIPE LIFELINE`; every process of a training calls it."""
    quiet_warnings()
    path, *descriptors = sys.argv[1:]
    work: StudyWork = pickle.loads(Path(path).read_bytes())  # the driver has just written it
    if int(os.environ.get("LOCAL_RANK", 0)):
        work._do(lambda kind, **details: None)
    else:
        Outbox.inherited(*descriptors).run(work.do)
        Path(path).unlink()


if __name__ == "__main__":
    main()
