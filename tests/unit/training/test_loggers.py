"""metrics.csv, and what is not logged twice."""

from __future__ import annotations

import csv
import resource
from pathlib import Path

import pytest
import torch

from megasr.errors import MegaSRError
from megasr.training import loggers
from megasr.training.folders import read_rows
from megasr.training.loggers import CSVLog, Recorded, open_loggers


def test_a_log_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    log = CSVLog(tmp_path, [])
    log.log_metrics({"a": 1.5, "epoch": 0}, step=0)
    log.log_metrics({"b": torch.tensor(2.0), "epoch": 0, "a": 7}, step=0)  # a and epoch have been logged
    log.log_metrics({"a": float("nan")}, step=4)
    path = tmp_path / "metrics.csv"
    with path.open("a") as file:
        file.write("5,9")  # killed while it wrote
    rows = read_rows(path)
    assert rows == [{"step": "0", "a": "1.5", "epoch": "0"}, {"step": "0", "b": "2.0"}, {"step": "4", "a": "nan"}]
    resumed = CSVLog(tmp_path, rows)
    for step in (3, 4, 5):
        resumed.log_metrics({"a": float(step), "b": 3.0}, step=step)
    with path.open(newline="") as file:
        read = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    assert read == [
        *rows, {"step": "3", "b": "3.0"}, {"step": "4", "b": "3.0"}, {"step": "5", "a": "5.0", "b": "3.0"}
    ]  # fmt: skip
    CSVLog(tmp_path, []).log_metrics({"c": 1}, step=0)
    assert path.read_text() == "step,c\n0,1\n", "a new run replaces it"


def test_pictures_go_with_the_numbers_beside_them() -> None:
    recorded, picture = Recorded([{"step": "9", "psnr": "20.0"}]), object()
    assert recorded.fresh({"psnr": 21.0, "image": picture}, 9) == {}
    assert recorded.fresh({"psnr": 21.0, "image": picture}, 10) == {"psnr": 21.0, "image": picture}
    assert recorded.fresh({"psnr": 21.0, "image": picture}, 10) == {}


def test_a_full_disk_delays_rows_and_loses_none(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    log = CSVLog(tmp_path, [])
    log.log_metrics({"train/loss": 0.5}, step=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (25, limits[1]))  # three more than there are: a row is cut off
    try:
        log.log_metrics({"train/loss": 0.25}, step=1)
        log.log_metrics({"val/loss": 4.0}, step=2)  # a new column: the whole file would be written
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [str(warning.message).partition(" (")[0] for warning in recwarn] == [
        f"{tmp_path / 'metrics.csv'} is not written"
    ] * 2
    log.log_metrics({"train/loss": 0.125}, step=3)
    assert read_rows(tmp_path / "metrics.csv") == [
        {"step": "0", "train/loss": "0.5"},
        {"step": "1", "train/loss": "0.25"},
        {"step": "2", "val/loss": "4.0"},
        {"step": "3", "train/loss": "0.125"},
    ]


def test_rows_that_wait_are_written_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CSVLog(tmp_path, [])
    with monkeypatch.context() as full, pytest.warns(UserWarning, match="is not written"):
        full.setattr(loggers, "write_whole", refuse)
        log.log_metrics({"train/loss": 0.5}, step=0)
    log.finalize("success")
    assert read_rows(tmp_path / "metrics.csv") == [{"step": "0", "train/loss": "0.5"}]


def test_weights_that_are_not_taken_do_not_keep_a_run_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    ended = list[int]()
    _, wandb = open_loggers(tmp_path, {}, False, pytest.fail)
    run = wandb.experiment
    monkeypatch.setattr(type(run), "finish", lambda self, exit_code: ended.append(exit_code))
    with pytest.warns(UserWarning, match=r"W&B took no artifact of .*last.ckpt"):  # there is none
        wandb.finalize("success")
    assert ended == [0]
    monkeypatch.undo()
    run.finish()


def refuse(*unused: object) -> None:
    raise MegaSRError("no room")
