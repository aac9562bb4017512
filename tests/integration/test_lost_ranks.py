"""One of two processes is killed or hangs: the other says which, in one line, and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning
import pytest

from megasr import cli
from megasr.training import rank_watch
from megasr.training.rank_watch import judge
from tests.helpers.ranks import run_ranks
from tests.helpers.training import prior_folder

pytestmark = pytest.mark.filterwarnings("ignore")
TIMEOUT_S = 3


class At(lightning.Callback):
    """In the second step a process is killed, or sleeps for longer than the others wait and look."""

    def __init__(self, rank: int, hangs_s: int = 0) -> None:
        self.rank, self.hangs_s = rank, hangs_s

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step, trainer.global_rank) == (1, self.rank):
            if not self.hangs_s:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.hangs_s)


def fit(folder: Path, *more: str) -> None:
    """`megasr fit` in this process; what it says and how long it took from the first step goes into a file."""
    path = folder / f"rank{os.environ['RANK']}.txt"
    with path.open("w") as file, contextlib.redirect_stderr(file):
        options = {
            "model.prior": prior_folder(), "model.adapter.guidance": "[canny]", "model.adapter.saft_width": 8,
            "model.adapter.controlnet": "false", "data": "PhotoDataModule", "data.crop_size_px": 32,
            "data.batch_size": 1, "data.eval_samples": 1, "trainer.max_steps": 3, "trainer.limit_val_batches": 0,
            "trainer.logger": "false", "trainer.accelerator": "cpu", "trainer.devices": 2,
            "trainer.enable_progress_bar": "false", "trainer.default_root_dir": folder, "monitor.every_n_steps": 0,
            "trainer.callbacks": f"{__name__}.At",
        }  # fmt: skip
        code = cli.main(["fit", *(f"--{name}={value}" for name, value in options.items()), *more])
        print(f"exit code {code}", file=file)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processes that are started inherit: they look for a shorter time, and the prior is there."""
    monkeypatch.setattr(rank_watch, "_BEAT_S", 0.2)
    monkeypatch.setattr(rank_watch, "_LOOK_S", 1.5)
    prior_folder()


def lines_of(folder: Path, rank: int) -> list[str]:
    return (folder / f"rank{rank}.txt").read_text().splitlines()[-2:]


@pytest.mark.parametrize(
    ("victim", "says"),
    [(1, "rank 1 died, last heard of in step "), (0, "rank 0 died: its store does not answer any more")],
)
def test_the_others_name_a_process_that_was_killed(tmp_path: Path, victim: int, says: str) -> None:
    with pytest.raises(AssertionError, match=f"rank {victim} ended without a word"):
        run_ranks(2, fit, tmp_path, "--trainer.strategy=ddp", f"--trainer.callbacks.rank={victim}")
    line, code = lines_of(tmp_path, 1 - victim)
    assert line.startswith(f"megasr: error: {says}")
    assert code == "exit code 1"


def test_the_others_name_a_process_that_hangs(tmp_path: Path) -> None:
    sharded = (
        "--trainer.strategy=megasr.training.strategies.ShardedStrategy",
        f"--trainer.strategy.timeout_s={TIMEOUT_S}",
    )
    run_ranks(2, fit, tmp_path, *sharded, "--trainer.callbacks.rank=1", "--trainer.callbacks.hangs_s=7")
    for rank in (0, 1):  # the second has slept, and reads what the first has found
        line, code = lines_of(tmp_path, rank)
        assert line == f"megasr: error: rank 1 did not arrive within {TIMEOUT_S} s: it hangs in step 1"
        assert code == "exit code 1"


def state(beat: int, ended: str | None = None) -> dict[str, Any]:
    return {"beat": beat, "step": 7, "ended": ended}


def test_an_error_of_a_process_goes_before_its_silence_and_a_death_before_a_hang() -> None:
    before = {1: state(5), 2: state(5), 3: state(5)}
    assert (
        judge(before, {1: state(5), 2: state(9, "KeyError: x"), 3: state(9)}, 4.2)
        == "rank 2 ended in step 7: KeyError: x"
    )
    assert judge(before, {1: state(5), 2: state(9, "lost"), 3: state(9)}, 4.2) == "rank 1 died, last heard of in step 7"
    assert judge(before, {1: state(9), 2: state(9, "lost"), 3: state(9)}, 4.2) == (
        "rank 1 did not arrive within 4 s: it hangs in step 7; rank 3 did not arrive within 4 s: it hangs in step 7"
    )
    assert judge(before, {rank: state(9, "lost") for rank in before}, 4.2) is None
