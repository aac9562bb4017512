"""How a real `megasr fit` ends, in one process and in two: the first error is the one that is said, nothing is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

import megasr.commands.lightning_cli  # noqa: F401  once, not in every process that is forked from this one
from megasr import cli
from megasr.files import locked_folder
from megasr.training.last_checkpoint import LAST, STOPPED
from tests.helpers.ranks import free_ports, rank_environment
from tests.helpers.sources import ROOT
from tests.helpers.training import prior_folder

pytestmark = pytest.mark.filterwarnings("ignore")
TIMEOUT_S = 3


def send(number: int) -> None:
    """A signal to this process and its workers, from another process, as a terminal or `timeout` sends it."""
    subprocess.run(["kill", f"-{number}", "--", f"-{os.getpgrp()}"], check=True, process_group=0)


class At(lightning.Callback):
    """Does something in a hook, when so many steps are done, in the process of one rank."""

    def __init__(self, hook: str, action: str, step: int = 2, rank: int = 0) -> None:
        self.step, self.rank, self.action = step, rank, action
        setattr(self, hook, self._act)

    def _act(self, trainer: Any, module: Any, *inputs: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            getattr(self, self.action)(*inputs)

    def interrupt(self, *unused: Any) -> None:
        send(signal.SIGINT)

    def interrupt_twice(self, *unused: Any) -> None:
        send(signal.SIGINT)
        send(signal.SIGINT)

    def terminate(self, *unused: Any) -> None:
        send(signal.SIGTERM)

    def spoil(self, batch: Any, *unused: Any) -> None:
        batch["hq"][...] = torch.nan

    def kill_worker(self, *unused: Any) -> None:
        multiprocessing.active_children()[0].kill()
        time.sleep(5)

    def fail(self, *unused: Any) -> None:
        raise KeyError("first")

    def die(self, *unused: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self, *unused: Any) -> None:
        time.sleep(3 * TIMEOUT_S)


class FailsToEnd(lightning.Callback):
    """Raises in the hook that is called because of an error."""

    def on_exception(self, *unused: Any) -> None:
        raise AttributeError("second")


def options(folder: Path, *callbacks: dict[str, Any], **changes: Any) -> list[str]:
    """A small training that writes down every step; keyword arguments are of the trainer."""
    classes = [{"class_path": "megasr.training.callbacks.EMA"}, *callbacks]
    given = {
        "model.prior": prior_folder(), "model.adapter.guidance": "[canny]", "model.adapter.saft_width": 8,
        "model.adapter.controlnet": "false", "data": "PhotoDataModule", "data.crop_size_px": 32,
        "data.batch_size": 1, "data.eval_samples": 3, "monitor.every_n_steps": 0,
        "trainer.callbacks": json.dumps(classes),
    }  # fmt: skip
    trainer = {
        "max_steps": 5, "limit_val_batches": 0, "log_every_n_steps": 1, "num_sanity_val_steps": 0,
        "accelerator": "cpu", "enable_progress_bar": "false", "enable_model_summary": "false",
        "default_root_dir": folder,
    }  # fmt: skip
    given |= {f"trainer.{name}": value for name, value in (trainer | changes).items()}
    return ["fit", *(f"--{name}={value}" for name, value in given.items())]


def at(hook: str, action: str, **where: int) -> dict[str, Any]:
    return {"class_path": f"{__name__}.At", "init_args": {"hook": hook, "action": action, **where}}


def start(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Any:
    """`megasr` in a process group of its own, forked from this process, which has imported everything."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(command, log, environment or {}))
    process.start()
    return process


def _run(command: list[str], log: Path, environment: dict[str, str]) -> None:
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment, WANDB_MODE="disabled")
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    os._exit(cli.main(command))


def end(process: Any) -> int | None:
    """Its exit code."""
    process.join(100)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode


def last_line_of(log: Path) -> str:
    return log.read_text().rstrip().rpartition("\n")[2]


def saved_steps(folder: Path) -> int | None:
    path = folder / LAST
    return torch.load(path, weights_only=True)["global_step"] if path.is_file() else None


STEP, PASS, LINE = "on_train_batch_start", "on_before_backward", "megasr: error: "
WORKER = "--data.num_workers=1"
VALIDATION, VALIDATES = "on_validation_batch_start", {"limit_val_batches": 3, "val_check_interval": 2}


@pytest.mark.parametrize(
    ("callbacks", "changes", "more", "code", "line", "saved"),
    [
        # the step in which the signal comes is ended, though all of the group have been sent it
        ([at(PASS, "interrupt")], {}, [WORKER], 130, "", 3),
        ([at(PASS, "terminate")], {}, [WORKER], 143, "", 3),
        ([at(STEP, "interrupt_twice")], {}, [], 130, f"{LINE}interrupted", 2),
        ([at(VALIDATION, "interrupt")], VALIDATES, [], 130, "", 2),
        ([at(VALIDATION, "terminate", step=0)], {**VALIDATES, "num_sanity_val_steps": 3}, [], 143, "", None),
        ([at(STEP, "spoil")], {}, [], 1, f"{LINE}loss is not finite at step 2 for ", 2),
        ([at(STEP, "kill_worker")], {}, [WORKER], 1, f"{LINE}a data worker died in step 2 (", 2),
        ([at(STEP, "fail"), {"class_path": f"{__name__}.FailsToEnd"}], {}, [], 1, f"{LINE}KeyError: 'first'", None),
        ([at("on_before_backward", "fail", step=1)], {"accumulate_grad_batches": 2}, [], 1, f"{LINE}KeyError", 1),
    ],
    ids=["Ctrl-C", "SIGTERM", "twice", "validation", "start", "NaN", "worker", "second error", "accumulating"],
)  # fmt: skip
def test_one_process(
    tmp_path: Path, callbacks: Any, changes: Any, more: list[str], code: int, line: str, saved: int | None
) -> None:
    log = tmp_path.with_suffix(".log")
    process = start([*options(tmp_path, *callbacks, **changes), *more], log)
    assert end(process) == code, log.read_text()
    assert last_line_of(log).startswith(line)
    assert saved_steps(tmp_path) == saved
    assert (tmp_path / STOPPED).exists() == (code == 143)


def test_a_validation_that_is_stopped_is_no_success(tmp_path: Path) -> None:
    _, *given = options(tmp_path, at(VALIDATION, "terminate", step=0), limit_val_batches=3)
    assert end(start(["validate", *given], tmp_path.with_suffix(".log"))) == 143


def test_a_folder_takes_one_training_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("megasr.files._LOCK_WAIT_S", 0.0)
    with locked_folder(tmp_path):
        assert cli.main(options(tmp_path)) == 1
    assert capsys.readouterr().err.endswith(f"{LINE}another process is writing to {tmp_path}; wait for it, or end it\n")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def ranks(folder: Path, *command: str, **changes: Any) -> list[tuple[int | None, str]]:
    """Exit code and last line of two processes that something like torchrun has started."""
    (port,), logs = free_ports(1), [folder.with_suffix(f".{rank}") for rank in (0, 1)]
    processes = [start(list(command), log, rank_environment(rank, 2, port)) for rank, log in enumerate(logs)]
    return [(end(process), last_line_of(log)) for process, log in zip(processes, logs, strict=True)]


@pytest.mark.parametrize("victim", [0, 1])
def test_when_another_process_is_killed_the_steps_are_saved(tmp_path: Path, victim: int) -> None:
    command = options(tmp_path, at(STEP, "die", rank=victim), devices=2, strategy="ddp")
    ends = ranks(tmp_path, *command)
    assert ends[victim][0] == -signal.SIGKILL
    code, line = ends[1 - victim]
    assert code == 1
    assert line.startswith(f"{LINE}rank {1 - victim} waited in vain for another process in step 2: its own line")
    assert saved_steps(tmp_path) == (2 if victim else None)  # the first process has what a checkpoint holds


def test_what_is_spread_over_processes_is_saved_by_all_of_them(tmp_path: Path) -> None:
    strategy = json.dumps({"class_path": "megasr.training.sharding.ShardedStrategy"})
    (first, _), (second, _) = ranks(
        tmp_path, *options(tmp_path, at(PASS, "interrupt", rank=1), devices=2, strategy=strategy)
    )
    assert (first, second) == (143, 130)  # the signal has come to the second
    assert saved_steps(tmp_path) == 3


def test_the_process_that_hangs_is_the_one_that_does_not_wait(tmp_path: Path) -> None:
    strategy = "megasr.training.sharding.ShardedStrategy"
    command = options(tmp_path, at(STEP, "hang", rank=1), devices=2, strategy=strategy)
    (code, line), _ = ranks(tmp_path, *command, f"--trainer.strategy.timeout_s={TIMEOUT_S}")
    assert code == 1
    assert line.startswith(f"{LINE}rank 0 waited in vain for another process in step 2: ")


def in_a_shell(folder: Path, port: int, *callbacks: dict[str, Any]) -> subprocess.Popen[str]:
    """`megasr fit` with two processes, of which Lightning starts the second."""
    command = options(folder, *callbacks, devices=2, strategy="ddp", max_steps=10_000)
    environment = os.environ | {"WANDB_MODE": "disabled", "PYTHONPATH": f"{ROOT}", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-m", "megasr.cli", *command], env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def test_two_processes_in_a_shell(tmp_path: Path) -> None:
    """One training is interrupted, the second process of the other is killed. Both at once: most of it is importing."""
    ports = free_ports(2)  # Lightning may choose the same for two trainings that start in the same second
    interrupted = in_a_shell(tmp_path / "interrupted", ports[0])
    bereft = in_a_shell(tmp_path / "bereft", ports[1], at(STEP, "die", rank=1))
    try:
        rows = tmp_path / "interrupted" / "metrics.csv"
        wait_for(lambda: interrupted.poll() is not None or (rows.is_file() and rows.read_text().count("\n") > 3))
        os.killpg(interrupted.pid, signal.SIGINT)
        said = [process.communicate(timeout=100)[1].rstrip().splitlines() for process in (interrupted, bereft)]
    finally:
        for process in (interrupted, bereft):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert interrupted.returncode == 130, said[0]
    steps = saved_steps(tmp_path / "interrupted")
    assert steps == int(rows.read_text().splitlines()[-1].split(",")[0]) + 1
    assert f"saved {steps} steps: go on with --ckpt_path last" in said[0]
    assert bereft.returncode == 1, said[1]
    assert said[1][-1].startswith(f"{LINE}rank 0 waited in vain for another process in step 2: rank 1 was killed by ")
    assert saved_steps(tmp_path / "bereft") == 2
