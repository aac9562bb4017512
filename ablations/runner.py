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
from functools import cached_property
from pathlib import Path

from ablations.evaluation import EvaluationSet, check_sets, check_sources, find_metric, read_sets, take_present
from ablations.holdout import check_holdout
from ablations.launch.local import Event, Executor, LocalExecutor, Outbox, Slot, Task
from ablations.plan import BICUBIC, Components, Recipe, RunPlan, default_components, plan_runs, read_recipe
from ablations.progress import StudyProgress, say
from ablations.record import RECIPE_FILE, changes, make_record, read_record, reworded, write_record
from ablations.registry import Study
from ablations.results import (
    RunResult,
    StudyResult,
    merge_results,
    read_finished,
    read_restored,
    read_training,
)
from ablations.studies import get_study
from megasr.console import quiet_warnings
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.protocol import Protocol, get_protocol
from megasr.files import locked_folder, write_whole

_RUNS_IT = "# megasr study run "  # begins the recipe in a study's folder


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
        study: the question; its metrics have their names in the study.
        plans: every run, the baselines first and of them bicubic.
        output: folder of the run folders.
        group: id of study and recipe; W&B groups the runs by it.
        sets: what is measured, and how.
        components: classes the config builds.
        weights_dir: where weights of metrics are looked for first.
        recipe: its text, below the command that runs it.
    """

    study: Study
    plans: tuple[RunPlan, ...]
    output: Path
    group: str
    sets: tuple[EvaluationSet, ...]
    components: Components
    weights_dir: Path | None
    recipe: str

    @cached_property
    def hosts(self) -> dict[str, RunPlan]:
        """Training -> the run in whose folder it lies: the first that needs it."""
        return {plan.training: plan for plan in reversed(self.plans)}

    @property
    def finished(self) -> dict[str, RunResult]:
        """Run id -> result of the runs that are finished on every set, in the order of the plan.

        Raises:
            MegaSRError: a result cannot be read.
        """
        results = {plan.run_id: self.read(plan) for plan in self.plans if not self.left(plan)}
        return {run_id: result for run_id, result in results.items() if result is not None}

    def read(self, plan: RunPlan) -> RunResult | None:
        """The result of a run on the sets that it has finished, None when there is none."""
        return merge_results(self.sets, self._read_sets(plan))

    def left(self, plan: RunPlan) -> list[EvaluationSet]:
        """The sets on which a run is not finished."""
        done = self._read_sets(plan)
        return [one for one in self.sets if one.name not in done]

    def _read_sets(self, plan: RunPlan) -> dict[str, RunResult]:
        weights = self._weights(plan)
        found = {one.name: read_finished(plan, one, self.output / plan.run_id, weights) for one in self.sets}
        return {name: result for name, result in found.items() if result is not None}

    def _weights(self, plan: RunPlan) -> str:
        training = read_training(plan, self.output / self.hosts[plan.training].run_id)
        return training.weights if training else ""

    @property
    def baseline(self) -> RunPlan:
        """Bicubic, against whose lq every run is checked."""
        return self.plans[0]

    @property
    def jobs(self) -> list[Job]:
        """The trainings that unfinished runs need, in the order of the plan; each baseline is a job of its own."""
        todo = dict[str, list[RunPlan]]()
        for plan in self.plans:
            if self.left(plan):
                todo.setdefault(plan.training, []).append(plan)
        return [Job(self.hosts[training], tuple(runs)) for training, runs in todo.items()]

    def needs_training(self, job: Job) -> bool:
        """Whether it takes more than restoring and measuring."""
        if job.host.seed is None or read_training(job.host, self.output / job.host.run_id) is not None:
            return False
        left = ((plan, one.folder(self.output / plan.run_id)) for plan in job.todo for one in self.left(plan))
        return any(read_restored(plan, folder) is None for plan, folder in left)

    @property
    def devices(self) -> int:
        """Devices that a training asks for."""
        return max(plan.processes for plan in self.plans)

    def check(self) -> None:
        """Check evaluation sets and weights of metrics before the first run. Raises as `check_sets`."""
        base = self.output / self.baseline.run_id
        restored = {one.name: read_restored(self.baseline, one.folder(base)) for one in self.sets}
        measured = {name: images.keys for name, images in restored.items() if images is not None}
        check_sets(self.sets, self.baseline.config["data"], self.components, self.weights_dir, measured)

    def run(self, executor: Executor, train: bool = True) -> StudyResult:
        """Do what is left, under `output/<run_id>/`: bicubic here, other baselines and trainings by the executor.

        Args:
            executor: where.
            train: without, runs that are not trained are left as they are.

        Raises:
            UsageError: a config does not fit, the study file was changed, or `output` is another study's.
            MegaSRError: another process works in `output`, weights of a metric are missing, or bicubic cannot be
                measured. Any other run that fails is named in the result, and the study goes on.
        """
        with self.claimed():
            reused = tuple(self.finished)
            if len(reused) < len(self.plans):
                self.check()
            self.run_baseline()
            jobs = self.jobs
            if not train:
                untrained = [job for job in jobs if self.needs_training(job)]
                jobs = [job for job in jobs if job not in untrained]
                for job in untrained:
                    say(f"{job.label}: not trained, so not evaluated; `megasr study run` trains it")
            failed = self._run(jobs, executor) if jobs else {}
        return self.result(reused, failed)

    def run_baseline(self) -> None:
        """Measure bicubic, unless that is done. Raises as run."""
        for job in self.jobs[:1]:
            if job.host is self.baseline:
                self._run([job], LocalExecutor([Slot("cpu", os.cpu_count() or 1, {"CUDA_VISIBLE_DEVICES": ""})]))

    def find(self, ablation: str, seed: int) -> RunPlan:
        """The run of an ablation and a seed. Raises UsageError when the study has none."""
        for plan in self.plans:
            if (plan.ablation, plan.seed) == (ablation, seed):
                return plan
        raise UsageError(
            f"study {self.study.name} has no run of ablation {ablation!r} with seed {seed}; see `megasr study plan`"
        )

    def sharing(self, run_id: str) -> list[RunPlan]:
        """This run, and those that share its training. Raises UsageError when the study has none of this id."""
        for plan in self.plans:
            if plan.run_id == run_id:
                return [plan, *(other for other in self.plans if other.training == plan.training and other is not plan)]
        raise UsageError(f"study {self.study.name} has no run {run_id!r} with this recipe; see `megasr study plan`")

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
        training = self.sharing(run_id)[0].training
        jobs = [job for job in self.jobs if job.host.training == training]
        self.check_unchanged()
        if jobs and run_id != self.baseline.run_id and self.left(self.baseline):
            raise MegaSRError(f"run {self.baseline.run_id} comes first: every other one is checked against it")
        return self._run(jobs, executor) if jobs else {}

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the only driver that works in `output`, and write down what the study is and its recipe.

        Raises:
            UsageError: see check_unchanged.
            MegaSRError: another driver works in `output`.
        """
        with locked_folder(self.output):
            self.check_unchanged()
            write_record(make_record(self.study, self.plans, self.sets), self.output)
            write_whole(self.output / RECIPE_FILE, self.recipe.encode())
            yield

    def check_unchanged(self) -> None:
        """Refuse a study that is no longer the one that was begun in `output`; it may have grown.

        Raises:
            UsageError: `output` is another study's, or something was changed or removed; all of it is listed.
        """
        if (begun := read_record(self.output)) is None:
            return
        if begun.study != self.study.name:
            raise UsageError(f"{self.output} holds study {begun.study}; give {self.study.name} a folder of its own")
        if told := changes(begun, make_record(self.study, self.plans, self.sets)):
            raise UsageError(
                f"{self.output} was begun as another study; what has changed since: {'; '.join(told)}. A study may "
                "grow (seeds, ablations, evaluation sets, protocols); what is changed is another study: name another "
                "--output"
            )

    def result(self, reused: Sequence[str] | None = None, failed: Mapping[str, str] | None = None) -> StudyResult:
        """What is finished, of runs that lack a set as well; all of it was before, unless `reused` says otherwise."""
        runs = [result for plan in self.plans if (result := self.read(plan)) is not None]
        reused = tuple(run.run_id for run in runs) if reused is None else tuple(reused)
        begun = read_record(self.output)
        words = reworded(begun, make_record(self.study, self.plans, self.sets)) if begun else ()
        about = self.study, self.sets, tuple(runs), self.output, self.group, reused, failed or {}
        return StudyResult(*about, reworded=tuple(words))

    def _run(self, jobs: Sequence[Job], executor: Executor) -> dict[str, str]:
        """Run id -> reason, in one line, of the runs of these jobs that failed."""
        import pyiqa  # noqa: F401  once, in the process that is forked: it takes seconds

        import ablations.execute  # noqa: F401

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
        if job.host is self.baseline:
            raise MegaSRError(f"run {event.task}: {error}; no other run can be checked without it") from error
        reason = " ".join(str(error).split())
        lost = [plan.run_id for plan in job.todo if self.left(plan)]
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
        protocol: of all evaluation sets, instead of the recipe's.
        components: classes the config builds; the project's own by default.

    Raises:
        UsageError: unknown study, a recipe that is not for it, an evaluation set that cannot be, a primary or hold-out
            metric that no protocol measures, a hold-out metric that is no hold-out, a baseline that cannot be, or maps
            of hq beside a set without hq.
        MegaSRError: weights of a prior, an extractor or a baseline are missing.
    """
    components = components or default_components()
    recipe = read_recipe(config, components, steps)
    name = study.name if isinstance(study, Study) else study
    chosen = study if isinstance(study, Study) else recipe.declared or get_study(study)
    sets = read_sets(recipe.evaluation, protocol or get_protocol(recipe.protocol), components, config)
    if protocol is not None:
        sets = tuple(replace(one, protocol=protocol) for one in sets)
    if recipe.study != name:
        raise UsageError(f"{config} is a recipe for study {recipe.study!r}, not for {name!r}")
    # Before hours of runs that could not answer the question.
    primary, holdout = find_metric(sets, chosen.primary_metric), recipe.holdout_metric or chosen.holdout_metric
    holdout = None if holdout is None else find_metric(sets, holdout, "holdout_metric")
    sets = take_present(sets, recipe.weights_dir, (primary, holdout))
    baselines = chosen.baselines if recipe.baselines is None else recipe.baselines
    chosen = replace(
        chosen,
        primary_metric=primary,
        holdout_metric=holdout,
        least_difference=recipe.least_difference,
        baselines=tuple(dict.fromkeys((BICUBIC, *baselines))),
    )
    plans = plan_runs(chosen, recipe, components, seeds)
    check_holdout(chosen, sets, plans)
    check_sources(sets, plans)
    group = f"{chosen.name}-{hashlib.blake2b(json.dumps(recipe.config).encode(), digest_size=4).hexdigest()}"
    text = _recipe_to_keep(recipe, name, seeds, steps)
    return OpenStudy(chosen, tuple(plans), output, group, sets, components, recipe.weights_dir, text)


def _recipe_to_keep(recipe: Recipe, name: str, seeds: Sequence[int] | None, steps: int | None) -> str:
    """The recipe's text below the command that runs it, in place of such a line from another study's folder."""
    command = f"{_RUNS_IT}{RECIPE_FILE if recipe.declared else f'{name} --config {RECIPE_FILE}'}"
    given = {"--seeds": seeds, "--steps": None if steps is None else [steps]}
    options = [f"{option} {' '.join(map(str, values))}" for option, values in given.items() if values]
    first, _, rest = recipe.text.partition("\n\n")
    own = rest if first.startswith(_RUNS_IT) and "\n" not in first else recipe.text
    return f"{' '.join([command, *options])} --output FOLDER\n\n{own}"


@dataclass(frozen=True)
class StudyWork:
    """A job of a study as a task: the training, and one evaluation after the other."""

    study: OpenStudy
    job: Job

    def is_done(self) -> bool:
        """Whether all of its runs are finished."""
        return not any(self.study.left(plan) for plan in self.job.todo)

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
        from ablations.execute import Evaluators, execute_baseline, execute_run
        from ablations.tracking import Tracker

        study = self.study
        evaluators, baseline = Evaluators(study.sets, study.weights_dir), study.output / study.baseline.run_id
        tracker = Tracker(study.group, lambda line: send("message", line=line))

        def on_step(step: int, loss: float) -> None:
            send("step", step=step, loss=loss)

        for plan in self.job.todo:
            if not (todo := study.left(plan)):
                continue
            given = (plan, study.components, todo, evaluators, study.output / plan.run_id, baseline)
            if plan.seed is None:
                execute_baseline(*given)
                continue
            if execute_run(*given, tracker, on_step, self.folder) is None:
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
