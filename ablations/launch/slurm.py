"""Hands the trainings of a study to SLURM, as an array of jobs that it may preempt, and waits for them.

Nothing about a job is kept in the driver's memory alone: which trainings a submission holds is written before it is
made, and its name there is the comment of its jobs. A driver that died, or was stopped, finds them by it and submits
none twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.launch.local import Event, stop_children
from ablations.launch.slots import Slot, make_slots
from megasr.errors import MegaSRError, UsageError
from megasr.files import write_whole

if TYPE_CHECKING:
    from ablations.jobs import Job
    from ablations.runner import OpenStudy

FOLDER = "slurm"  # of a study: submissions, logs, and the step of every training
_DEFAULTS = {"time": 24 * 60, "array_parallelism": 10_000}  # minutes until a job is stopped and goes on in a new one
_REQUEUES = 1000  # a training goes on from its checkpoint: it may be stopped as often as a cluster likes
_POLL_S = 5.0
_LINGERS_S = 15.0  # from a job's end until a shared file system shows its last file
_SQUEUE = ("squeue", "--noheader", "--array", "--format=%F|%K|%T|%r|%k")


@dataclass(frozen=True)
class SlurmTraining:
    """What one job does: a training, and the runs that rest on it. submitit pickles it.

    Attributes:
        study: opened as the driver opened it; what is finished in the meantime is not done again.
        run_id: the run that hosts the training.
        retries: how often the training is started again whose process has died.
    """

    study: OpenStudy
    run_id: str
    retries: int = 1

    def __call__(self) -> None:
        """Do it, on the one device that the job was given.

        Raises:
            MegaSRError: a run failed.
        """
        for name in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"):  # or Lightning takes the training for one of many ranks
            os.environ.pop(name, None)
        failed = self.study.run_one(self.run_id, _slot_of_job(), self.retries, _Steps(self.study.output, self.run_id))
        if failed:
            raise MegaSRError("; ".join(f"{run_id}: {reason}" for run_id, reason in failed.items()))

    def checkpoint(self, *_: Any) -> Any:
        """Called by submitit before SLURM stops the job: let the training save; the same again goes on from there."""
        from submitit.helpers import DelayedSubmission

        stop_children()
        return DelayedSubmission(self)


@dataclass(frozen=True)
class SlurmJob:
    """A job in the queue: its number, its state as squeue words it, and the run that hosts its training."""

    job_id: str
    state: str
    run_id: str


def run_on_slurm(
    study: OpenStudy, parameters: Mapping[str, str], retries: int = 1, poll_s: float = _POLL_S
) -> dict[str, str]:
    """Do what is left of a study: bicubic here, then every training in a job of its own.

    Args:
        study: the study; its folder must be seen by the nodes under the same name.
        parameters: of the jobs, named as by submitit: partition, time (minutes), gpus_per_node, mem, account, ...
        retries: see SlurmTraining.
        poll_s: seconds between two looks at the queue.

    Returns:
        Run id -> reason, in one line, of runs that failed.

    Raises:
        UsageError: an unknown parameter.
        MegaSRError: SLURM is not there or refuses, or bicubic cannot be measured.
        KeyboardInterrupt: the driver was stopped; the jobs go on.
    """
    from rich.console import Console

    from ablations.progress import StudyTable

    executor = _executor(study, parameters)  # before anything starts
    in_queue = _jobs(study.output)
    study.run_one(study.plans[0].run_id, make_slots("cpu", 1)[0])
    jobs = {job.host.run_id: job for job in study.jobs}
    table = StudyTable(Console())
    for run_id, job in jobs.items():
        table.add(run_id, job.label, len(job.todo), job.host.max_steps)
    known = {job.run_id for job in in_queue}
    if adopted := known & set(jobs):
        table.tell(f"{len(adopted)} jobs of an earlier command are in the queue; waiting for them")
    if new := [run_id for run_id in jobs if run_id not in known]:
        _submit(executor, study, new, retries)
    failed = dict[str, str]()
    try:
        with table.shown():
            for event in _watch(study, jobs, poll_s, table.tell):
                table.heard(event)
                if event.kind == "failed":
                    failed |= study.failures(jobs[event.task], event, table.tell)
    except KeyboardInterrupt:
        numbers = " ".join(sorted({job.job_id.split("_")[0] for job in _jobs(study.output)}))
        table.tell(f"the jobs go on; the same command waits for them again, and `scancel {numbers}` ends them")
        raise
    return failed


def _slot_of_job() -> Slot:
    slot = make_slots("auto", 1)[0]
    return replace(slot, threads=int(os.environ.get("SLURM_CPUS_PER_TASK", slot.threads)))


class _Steps:
    """Leaves the step of a training where the driver sees it."""

    def __init__(self, output: Path, run_id: str) -> None:
        self._path = _steps_file(output, run_id)
        self._written = 0.0

    def __call__(self, event: Event) -> None:
        if event.kind == "step" and time.monotonic() - self._written > _POLL_S:
            self._written = time.monotonic()
            write_whole(self._path, json.dumps(event.details).encode())


def _steps_file(output: Path, run_id: str) -> Path:
    return output / FOLDER / f"{run_id}.step.json"


def _executor(study: OpenStudy, parameters: Mapping[str, str]) -> Any:
    from submitit.slurm.slurm import SlurmExecutor

    token = f"megasr-{uuid.uuid4().hex[:12]}"
    try:
        executor = SlurmExecutor((study.output / FOLDER).resolve(), max_num_timeout=_REQUEUES)
    except RuntimeError as error:
        raise MegaSRError("SLURM is not here: there is no srun; start the study on a login node") from error
    values = {name: int(value) if value.isdigit() else value for name, value in parameters.items()}
    try:
        executor.update_parameters(**{"job_name": study.study.name} | _DEFAULTS | values | {"comment": token})
    except (ValueError, TypeError) as error:
        raise UsageError(f"--slurm: {_one_line(error)}") from error
    return executor


def _submit(executor: Any, study: OpenStudy, run_ids: Sequence[str], retries: int) -> None:
    held = study.output / FOLDER / f"{executor.parameters['comment']}.json"
    write_whole(held, json.dumps(list(run_ids)).encode(), durable=True)
    try:
        executor.submit_array([SlurmTraining(study, run_id, retries) for run_id in run_ids])
    except Exception as error:  # submitit has many kinds
        held.unlink()
        raise MegaSRError(f"SLURM refused the jobs: {_one_line(error)}") from error


def _jobs(output: Path) -> list[SlurmJob]:
    """The study's jobs in the queue, waiting or running.

    Raises:
        MegaSRError: SLURM does not answer.
    """
    try:
        done = subprocess.run(_SQUEUE, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise MegaSRError(f"SLURM does not answer: {_one_line(said)}") from error
    found = []
    for line in done.stdout.splitlines():
        number, index, state, reason, token = line.split("|", 4)
        held = output / FOLDER / f"{token}.json"
        if token.startswith("megasr-") and held.is_file():
            state = f"{state.lower()} ({reason})" if reason != "None" else state.lower()
            run_id = json.loads(held.read_text())[int(index) if index.isdigit() else 0]  # one job makes no array
            found.append(SlurmJob(f"{number}_{index}" if index.isdigit() else number, state, run_id))
    return found


def _watch(study: OpenStudy, jobs: Mapping[str, Job], poll_s: float, tell: Callable[[str], None]) -> Iterator[Event]:
    """What happens to the trainings, until each is finished or has failed."""
    left, states, gone = set(jobs), dict[str, str](), dict[str, float]()
    last_job = dict[str, str]()
    while left:
        try:
            queue = {job.run_id: job for job in _jobs(study.output)}
        except MegaSRError as error:  # its controller may be away for a while; the jobs go on
            tell(f"{error}; waiting")
            time.sleep(max(poll_s, _LINGERS_S))
            continue
        for run_id in sorted(left):
            if job := queue.get(run_id):
                gone.pop(run_id, None)
                last_job[run_id] = job.job_id
                if states.get(run_id) != job.state:
                    states[run_id] = job.state
                    yield Event(run_id, "queue", {"slot": job.job_id, "state": job.state})
                if details := _read_step(study.output, run_id):
                    yield Event(run_id, "step", details)
            elif not study.unfinished(jobs[run_id]):
                left.discard(run_id)
                yield Event(run_id, "finished")
            elif time.monotonic() - gone.setdefault(run_id, time.monotonic()) > _LINGERS_S:
                left.discard(run_id)
                reason = _last_words(study.output / FOLDER, last_job.get(run_id))
                yield Event(run_id, "failed", {"error": MegaSRError(reason)})
        if left:
            time.sleep(poll_s)


def _read_step(output: Path, run_id: str) -> dict[str, Any] | None:
    path = _steps_file(output, run_id)
    return json.loads(path.read_text()) if path.is_file() else None


def _last_words(folder: Path, job_id: str | None) -> str:
    """Why a job ended without its result: the last line of its log that is not srun's, which only repeats that."""
    logs = sorted(folder.glob(f"{job_id}_*_log.err")) if job_id else []
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if not lines:
        return f"SLURM job {job_id or 'unknown'} ended without a result and without a log in {folder}"
    said = next((line for line in reversed(lines) if not line.startswith("srun:")), lines[-1]).removeprefix(
        f"{MegaSRError.__module__}.{MegaSRError.__name__}: "
    )
    return f"{said} (SLURM job {job_id}; see {logs[-1]})"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
