"""W&B: what a study logs, and that it never stops or asks."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablations.plan import RunPlan
from ablations.results import RunResult
from ablations.tracking import Tracker
from megasr import tracking
from megasr.images import write_png
from tests.helpers.wandb_record import read_records

PLAN = RunPlan(
    "study-canny-s0-1234", "study", "canny", 0, {"model": {"adapter": {"guidance": ["canny"]}, "seed": 0}}, "1234"
)
RESULT = RunResult(
    PLAN.run_id, "study", "canny", 0, "1234", {"name": "p"}, [{"key": "a/0", "psnr_y": 20.0}], {"psnr_y": 20.0},
    1, 1.0, 1.0, "cpu", None, {}, None,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_disabled_opens_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said: list[str] = []
    tracker = Tracker("group", said.append)
    assert tracker.open(PLAN, tmp_path / "run") is None
    tracker.close(None, RESULT, {})
    assert said == []
    assert not (tmp_path / "run").exists()


def test_an_offline_run_holds_config_group_tags_pictures_and_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # a prompt would read it
    tracker = Tracker("study-abcd", said.append)
    logger = tracker.open(PLAN, tmp_path / "run")
    assert logger is not None, said
    assert "WANDB_MODE" not in os.environ  # Lightning's own offline switch would change it for what comes next
    run = logger.experiment
    assert (run.group, run.job_type, run.tags, run.name) == ("study-abcd", "canny", ("canny",), PLAN.run_id)
    assert run.config["model"]["adapter"]["guidance"] == ["canny"]
    assert run.config["seed"] == 0
    views = {name: torch.full((3, 8, 8), value) for name, value in (("lq_up", 0.1), ("sr", 0.5), ("hq", 0.9))}
    tracker.close(logger, RESULT, {"a/0": views})
    sheet, results = tmp_path / "sheet.png", tmp_path / "results.json"
    write_png(np.zeros((8, 8, 3), np.uint8), sheet)
    results.write_text('{"trust": "care"}')
    table = [["canny", 0.5], ["none", None]]
    tracker.report(("row", "p_holm"), table, sheet, results, {"primary_metric": "psnr_y"}, tmp_path / "report")
    assert said == []
    media = [path.name for path in (tmp_path / "run").rglob("media/**/*") if path.is_file()]
    assert sum(name.endswith(".png") for name in media) == 3
    assert sum(name.endswith(".table.json") for name in media) == 1
    report = {path.name: path for path in (tmp_path / "report").rglob("files/**/*") if path.is_file()}
    assert sum(name.endswith(".png") for name in report) == 1
    (stored,) = (path for name, path in report.items() if name.endswith(".table.json"))
    assert json.loads(stored.read_text())["data"] == table
    results.write_text("the next report")  # must not change what was logged
    assert report["results.json"].read_text() == '{"trust": "care"}'
    (offline,) = (tmp_path / "report").rglob("*.wandb")
    record = json.dumps(read_records(offline))
    assert all(word in record for word in ("study-abcd-report", "results.json", "primary_metric"))
    assert capfd.readouterr() == ("", "")


def test_failures_are_one_line_and_fall_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    tried: list[str] = []

    def start(folder: Path, mode: str, logger_class: Any, arguments: Any) -> Any:
        tried.append(mode)
        raise ConnectionError("api.wandb.ai is unreachable\nlong trace")

    monkeypatch.setattr(tracking, "_start", start)
    said: list[str] = []
    tracker = Tracker("group", said.append)
    assert tracker.open(PLAN, tmp_path / "run" / "wandb") is None
    assert tried == ["online", "offline"]
    assert len(said) == 2
    assert said[0].startswith("W&B cannot be used online (api.wandb.ai is unreachable); logging offline")
    assert said[1] == "W&B cannot log (api.wandb.ai is unreachable); going on without it"
    assert not any("\n" in line for line in said)
    assert tracker.open(PLAN, tmp_path / "next") is None  # not tried again for every run
    assert len(tried) == 2


def test_a_failure_at_the_end_does_not_lose_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @property
        def experiment(self) -> Any:
            raise OSError("No space left on device")

    said: list[str] = []
    tracker = Tracker("group", said.append)
    tracker.close(Broken(), RESULT, {})
    tracker.abort(Broken())
    monkeypatch.setattr(tracker, "_open", lambda *_: Broken())
    tracker.report((), [], Path("sheet.png"), Path("results.json"), {}, Path("report"))
    assert said == [
        f"W&B lost the end of {PLAN.run_id} (No space left on device); its results are on disk",
        "W&B lost the report (No space left on device); it is on disk",
    ]
