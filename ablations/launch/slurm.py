"""Runs tasks as an array of SLURM jobs, by submitit. The jobs may be preempted and requeued.

Which tasks a submission holds is written before it is made, and its name is the comment of its jobs: a driver that
died, or was stopped, finds the jobs again and submits none twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablations.launch.local import Event, LocalExecutor, Task, make_slots, stop_children
from ablations.progress import say
from megasr.errors import MegaSRError, UsageError
from megasr.files import write_whole

FOLDER = "slurm"  # of a study: submissions, logs, and the step of every training
_DEFAULTS = {"time": 24 * 60, "array_parallelism": 10_000}  # minutes until a job is requeued
_REQUEUES = 1000  # a training goes on from its checkpoint, so it may be stopped often
_LINGERS_S = 15.0  # from a job's end until a shared file system shows its last file
_SQUEUE = ("squeue", "--noheader", "--array", "--format=%F|%K|%T|%r|%k")


@dataclass(frozen=True)
class SlurmTask:
    """A task as one job; submitit pickles it."""

    task: Task
    folder: Path
    retries: int
    devices: int

    def __call__(self) -> None:
        """Run it on the devices of the job. Raises MegaSRError when it failed."""
        for name in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"):  # or Lightning takes it for one of many ranks
            os.environ.pop(name, None)
        slot = make_slots("auto", 1, self.devices)[0]
        slot = replace(slot, threads=int(os.environ.get("SLURM_CPUS_PER_TASK", slot.threads)))
        written = 0.0
        for event in LocalExecutor([slot], self.retries).run([self.task]):
            if event.kind == "step" and time.monotonic() - written > 5:
                written = time.monotonic()
                write_whole(self.folder / f"{self.task.name}.step.json", json.dumps(event.details).encode())
            if event.kind == "failed":
                raise MegaSRError(str(event.details["error"]))

    def checkpoint(self, *_: Any) -> Any:
        """Called by submitit before SLURM stops the job: let the training save; the same task goes on from there."""
        from submitit.helpers import DelayedSubmission

        stop_children()
        return DelayedSubmission(self)


@dataclass(frozen=True)
class SlurmExecutor:
    """See Executor.

    Attributes:
        output: folder that the nodes see under the same name.
        parameters: of the jobs, named as by submitit: partition, time (minutes), gpus_per_node, mem, account, ...
        retries: how often a task is started again, within its job, whose process has died.
        devices: per task.
        poll_s: seconds between two looks at the queue.
    """

    output: Path
    parameters: Mapping[str, str]
    retries: int = 1
    devices: int = 1
    poll_s: float = 5.0

    @property
    def folder(self) -> Path:
        """Submissions and logs."""
        return self.output / FOLDER

    def run(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """Submit what is not in the queue yet, and wait. Ctrl-C ends the waiting, not the jobs.

        Raises:
            UsageError: an unknown parameter.
            MegaSRError: SLURM is not there or refuses.
        """
        executor = self._executor()
        queued = set(self.queue())
        if new := [task for task in tasks if task.name not in queued]:
            self._submit(executor, new)
        try:
            yield from self._watch(tasks)
        except KeyboardInterrupt:
            numbers = " ".join(sorted({job_id.split("_")[0] for job_id, _ in self.queue().values()}))
            say(f"the jobs go on; the same command waits for them again, and `scancel {numbers}` ends them")
            raise

    def _executor(self) -> Any:
        from submitit.slurm.slurm import SlurmExecutor as Submitit

        try:
            executor = Submitit(self.folder.resolve(), max_num_timeout=_REQUEUES)
        except RuntimeError as error:
            raise MegaSRError("SLURM is not here: there is no srun; start the study on a login node") from error
        values = {name: int(value) if value.isdigit() else value for name, value in self.parameters.items()}
        settings = {"job_name": self.output.name} | _DEFAULTS | values | {"comment": f"megasr-{uuid.uuid4().hex[:12]}"}
        try:
            executor.update_parameters(**settings)
        except (ValueError, TypeError) as error:
            raise UsageError(f"--slurm: {_one_line(error)}") from error
        return executor

    def check(self) -> None:
        """Raise what run would raise at once."""
        self._executor()
        self.queue()

    def _submit(self, executor: Any, tasks: Sequence[Task]) -> None:
        submission = self.folder / f"{executor.parameters['comment']}.json"
        write_whole(submission, json.dumps([task.name for task in tasks]).encode(), durable=True)
        try:
            executor.submit_array([SlurmTask(task, self.folder, self.retries, self.devices) for task in tasks])
        except Exception as error:  # submitit has many kinds
            submission.unlink()
            raise MegaSRError(f"SLURM refused the jobs: {_one_line(error)}") from error

    def queue(self) -> dict[str, tuple[str, str]]:
        """Task -> (job id, state) of the jobs in the queue, waiting or running.

        Raises:
            MegaSRError: SLURM does not answer.
        """
        try:
            done = subprocess.run(_SQUEUE, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            message = getattr(error, "stderr", None) or error
            raise MegaSRError(f"SLURM does not answer: {_one_line(message)}") from error
        jobs = {}
        for line in done.stdout.splitlines():
            number, index, state, reason, token = line.split("|", 4)
            submission = self.folder / f"{token}.json"
            if token.startswith("megasr-") and submission.is_file():
                name = json.loads(submission.read_text())[int(index) if index.isdigit() else 0]  # one job: no array
                state = state.lower() if reason == "None" else f"{state.lower()} ({reason})"
                jobs[name] = (f"{number}_{index}" if index.isdigit() else number, state)
        return jobs

    def _watch(self, tasks: Sequence[Task]) -> Iterator[Event]:
        left = {task.name: task for task in tasks}
        shown, gone = dict[str, tuple[str, str]](), dict[str, float]()
        while left:
            try:
                queue = self.queue()
            except MegaSRError as error:  # its controller may be away for a while; the jobs go on
                say(f"{error}; waiting")
                time.sleep(max(self.poll_s, _LINGERS_S))
                continue
            for name, task in list(left.items()):
                if job := queue.get(name):
                    gone.pop(name, None)
                    if shown.get(name) != job:
                        shown[name] = job
                        yield Event(name, "queue", {"slot": job[0], "state": job[1]})
                    if (path := self.folder / f"{name}.step.json").is_file():
                        yield Event(name, "step", json.loads(path.read_text()))
                elif task.work.is_done():  # type: ignore[union-attr]
                    del left[name]
                    yield Event(name, "finished")
                elif time.monotonic() - gone.setdefault(name, time.monotonic()) > _LINGERS_S:
                    del left[name]
                    yield Event(name, "failed", {"error": MegaSRError(self._reason(shown.get(name, ("", ""))[0]))})
            if left:
                time.sleep(self.poll_s)

    def _reason(self, job_id: str) -> str:
        """Why a job ended without a result: the last line of its log that is not srun's."""
        logs = sorted(self.folder.glob(f"{job_id}_*_log.err")) if job_id else []
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if not lines:
            return f"SLURM job {job_id or 'unknown'} ended without a result and without a log in {self.folder}"
        last = next((line for line in reversed(lines) if not line.startswith("srun:")), lines[-1])
        last = last.removeprefix(f"{MegaSRError.__module__}.{MegaSRError.__name__}: ")
        return f"{last} (SLURM job {job_id}; see {logs[-1]})"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
