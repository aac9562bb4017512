"""A study on a real SLURM: arrays, preemption, a driver that dies, jobs that fail, and what SLURM refuses."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import lightning
import pytest

from ablations.launch.local import LocalExecutor, Slot
from ablations.launch.slurm import FOLDER, SlurmExecutor
from ablations.results import StudyResult
from ablations.runner import OpenStudy, open_study
from megasr.errors import MegaSRError, UsageError
from tests.helpers.slurm_cluster import missing_program, slurm_cluster
from tests.helpers.tiny_study import FAST, TINY_SAMPLING, FailingModule, SlowModule, tiny_components, write_recipe

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=f"SLURM's {missing_program()} is not installed")
ROOT = Path(__file__).parents[2]
SMALL = {"cpus_per_task": "1", "time": "30"}
LONG_STEPS = 120  # of 0.05 s


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with slurm_cluster() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in (environment | {"WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}).items():
            patch.setenv(name, value)
        yield


def _open(folder: Path, module: type[lightning.LightningModule], steps: int = 2, ablations: int = 2) -> OpenStudy:
    folder.mkdir(exist_ok=True)
    components = replace(tiny_components(), module=module)
    recipe = write_recipe(folder)
    study = replace(TINY_SAMPLING, ablations=TINY_SAMPLING.ablations[:ablations])
    return open_study(study, recipe, folder / "out", seeds=[0, 1], steps=steps, protocol=FAST, components=components)


def _run(study: OpenStudy, **parameters: str) -> StudyResult:
    executor = SlurmExecutor(study.output, SMALL | parameters, poll_s=0.5)
    executor.check()
    return study.run(executor)


def _rows(result: StudyResult) -> dict[str, object]:
    return {run.run_id: run.rows for run in result.runs}


def _wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)


def _slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.timeout(600)
def test_preempted_jobs_and_a_killed_driver_change_no_number(tmp_path: Path) -> None:
    here = LocalExecutor([Slot("cpu0", 1), Slot("cpu1", 1)])
    undisturbed = _open(tmp_path / "local", SlowModule, LONG_STEPS).run(here)
    study = _open(tmp_path / "slurm", SlowModule, LONG_STEPS)
    hosts = [plan.run_id for plan in study.plans if plan.ablation == "as-it-is"]
    driver = multiprocessing.get_context("fork").Process(target=_run, args=(study,))
    driver.start()
    logs = study.output / FOLDER

    _wait_for(lambda: all((study.output / host / "resume").is_dir() for host in hosts))  # both train
    job = _slurm("squeue", "-h", "-o", "%F").split()[0]
    os.kill(driver.pid or 0, signal.SIGKILL)
    driver.join()
    _slurm("scancel", "--signal=USR2", f"{job}_0")  # what SLURM sends before it preempts
    result = _run(study)

    assert _rows(result) == _rows(undisturbed)
    assert len(list(logs.glob("megasr-*.json"))) == 1  # the second driver has submitted nothing
    assert "Restarts=1" in _slurm("scontrol", "show", "job", f"{job}_0")
    assert "Restarts=0" in _slurm("scontrol", "show", "job", f"{job}_1")


def test_a_job_that_fails_is_told_and_the_others_are_kept(tmp_path: Path) -> None:
    study = _open(tmp_path, FailingModule, ablations=1)
    result = _run(study)
    assert [run.seed for run in result.runs if run.seed is not None] == [0, 0]
    assert len(result.failed) == 2
    reason = next(iter(result.failed.values()))
    assert "the loss is not finite at step 1" in reason
    assert "SLURM job" in reason


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({"colour": "red"}, UsageError, "--slurm.*colour.*partition"),
        ({"partition": "nowhere"}, MegaSRError, "SLURM refused the jobs.*partition"),
    ],
)
def test_what_slurm_does_not_know_is_one_line(
    parameters: dict[str, str], error: type[Exception], words: str, tmp_path: Path
) -> None:
    study = _open(tmp_path, SlowModule)
    with pytest.raises(error, match=words) as caught:
        _run(study, **parameters)
    assert "\n" not in str(caught.value)
    assert not list((study.output / FOLDER).glob("megasr-*.json"))


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MegaSRError, match="SLURM is not here"):
        _run(_open(tmp_path, SlowModule))
