"""W&B: what a study logs, and that it never stops or asks."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablations.page import StudyPage, write_page
from ablations.plan import RunPlan
from ablations.results import CHECKPOINT, RunResult
from ablations.tracking import Tracker, join_sweep
from megasr import tracking
from megasr.errors import UsageError
from megasr.files import write_whole
from megasr.images import write_png
from tests.helpers.study_page import study_page, with_pictures
from tests.helpers.wandb_record import artifacts, history, offline_runs, read_records

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
    tracker.close(None, RESULT, {}, {})
    assert said == []
    assert not (tmp_path / "run").exists()


def _answer(output: Path) -> StudyPage:
    """A study's page with pictures, and the files that stand beside it."""
    output.mkdir()
    page = with_pictures(study_page(6), output, 2)
    write_page(page, output / "index.html")
    write_png(np.zeros((8, 8, 3), np.uint8), output / "contact_sheet.png")
    (output / "results.json").write_text('{"trust": "care"}')
    return page


def _media(folder: Path) -> Counter[str]:
    """How many files of each kind W&B has kept."""
    return Counter("".join(path.suffixes[-2:]) for path in folder.rglob("media/**/*") if path.is_file())


def test_an_offline_run_holds_config_group_tags_pictures_and_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # a prompt would read it
    tracker = Tracker("study-abcd", said.append)
    views = {name: torch.full((3, 8, 8), value) for name, value in (("lq_up", 0.1), ("sr", 0.5), ("hq", 0.9))}
    for attempt in range(2):  # a training that has failed and is tried again
        logger = tracker.open(PLAN, tmp_path / "run")
        assert logger is not None, said
        assert "WANDB_MODE" not in os.environ  # Lightning's own offline switch would change it for what comes next
        run = logger.experiment
        assert (run.group, run.job_type, run.name) == ("study-abcd", "canny", "canny seed 0")
        assert run.tags == ("study", "canny")
        assert run.id == PLAN.run_id
        assert run.config["model"]["adapter"]["guidance"] == ["canny"]
        assert (run.config["ablation"], run.config["seed"], run.config["fingerprint"]) == ("canny", 0, "1234")
        assert {name: used for name, used in run.config["guidance"].items() if name in ("canny", "hed")} == {
            "canny": True, "hed": False
        }  # fmt: skip
        if attempt == 0:
            tracker.abort(logger)
    tracker.close(logger, RESULT, {"a/0": views}, {"modulation/unet.mid/canny": 0.2, "gate/unet.mid": 0.1})
    assert said == []
    assert _media(tmp_path / "run") == {".png": 4, ".table.json": 1}
    *_, record = offline_runs(tmp_path / "run")
    (row,) = [row for row in history(record) if "test/psnr_y" in row]
    assert (row["test/psnr_y"], row["modulation/unet.mid/canny"]) == (20.0, 0.2)
    assert row["test/guidance_use._type"] == "image-file"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("asked", ["end", ""])
def test_adapters_are_artifacts_where_that_is_asked_for(
    asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_LOG_MODEL", asked)
    folder = tmp_path / "run"
    write_whole(folder / CHECKPOINT, b"weights")
    write_whole(folder / "config.yaml", b"model: {}")
    tracker = Tracker("study-abcd", pytest.fail)
    tracker.close(tracker.open(PLAN, folder / "wandb"), RESULT, {}, {})
    (record,) = offline_runs(folder)
    logged = artifacts(record)
    adapter = logged.pop(f"adapter-{PLAN.run_id}", None)
    content = {name: path.read_bytes() for name, path in (adapter or {}).items()}
    assert content == ({CHECKPOINT: b"weights", "config.yaml": b"model: {}"} if asked else {})
    assert len(logged) == 1, "the table"
    assert all(path.is_relative_to(folder) for files in logged.values() for path in files.values())


def test_a_word_for_logging_weights_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    with pytest.raises(UsageError, match="WANDB_LOG_MODEL is 'checkpoint'; known: end"):
        Tracker("group", pytest.fail)


def test_runs_of_an_agent_are_in_its_sweep_and_one_keeps_its_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, other = tmp_path / "host", tmp_path / "other"
    for run_id in ("first", "second"):  # of another agent, when the run is tried again
        monkeypatch.setenv("WANDB_SWEEP_ID", "abcd1234")
        monkeypatch.setenv("WANDB_RUN_ID", run_id)
        join_sweep(host, [other])
        assert not {"WANDB_SWEEP_ID", "WANDB_RUN_ID"} & set(os.environ)
    join_sweep(tmp_path / "alone", [])  # no agent has started this
    tracker = Tracker("group", pytest.fail)
    for folder, run_id, sweep_id in (
        (host, "first", "abcd1234"),
        (other, PLAN.run_id, "abcd1234"),
        (tmp_path / "alone", PLAN.run_id, None),
    ):
        logger = tracker.open(PLAN, folder / "wandb")
        tracker.abort(logger)
        (record,) = offline_runs(folder)
        (run,) = (item["run"] for item in read_records(record) if item["type"] == "run")
        assert (run["run_id"], run.get("sweep_id")) == (run_id, sweep_id)


def test_the_run_of_a_study_holds_the_answer_and_is_one_however_often_it_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    output = tmp_path / "study"
    page = _answer(output)
    for _ in range(2):
        Tracker("study-abcd", said.append).report(page, output, {"primary_metric": "x"})
    assert said == []
    first, second = offline_runs(output)
    (one,), (other,) = ([r["run"] for r in read_records(record) if r["type"] == "run"] for record in (first, second))
    assert one["run_id"] == other["run_id"] == "study-abcd-study"
    assert (one["run_group"], one["job_type"], one["display_name"]) == ("study-abcd", "study", page.title)
    (row,) = [row for row in history(first) if "ranking._type" in row]
    kinds = {key.removesuffix("._type"): value for key, value in row.items() if key.endswith("._type")}
    figures = {f"figures/{name}": "image-file" for name in ("ranking", "shapley", "synergy")}
    tables = dict.fromkeys(("results", "ranking", "shapley", "synergy"), "table-file")
    pictures = {f"pictures/{key}": "images/separated" for key in page.pictures["hq"]}
    assert kinds == figures | tables | pictures | {"page": "html-file", "contact_sheet": "image-file"}
    files = first.parent / "files"
    ranking = json.loads((files / row["ranking.path"]).read_text())
    assert ranking["columns"] == list(page.ranking)
    numbers = ["label", "verdict", "difference", "low", "high"]
    assert [cells[1:6] for cells in ranking["data"]] == page.ranking[numbers].values.tolist()
    assert (files / row["page.path"]).read_text() == (output / "index.html").read_text()
    assert {row[f"pictures/{key}.count"] for key in page.pictures["hq"]} == {len(page.pictures)}
    (output / "results.json").write_text("the next report")  # must not change what was logged
    kept = artifacts(first)["study-abcd"]
    assert kept.keys() == {"results.json", "index.html"}, "what is there of the study's files"
    assert kept["results.json"].read_text() == '{"trust": "care"}'
    assert {path.is_relative_to(output) for files in artifacts(first).values() for path in files.values()} == {True}
    summary = json.dumps([record for record in read_records(first) if record["type"] == "summary"])
    assert page.trust in summary and page.ranking["label"][0] in summary


def test_failures_are_one_line_and_fall_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    tried: list[str] = []

    def start(folder: Path, mode: str, *_: Any) -> Any:
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
        save_dir = "run/wandb"

        @property
        def experiment(self) -> Any:
            raise OSError("No space left on device")

    said: list[str] = []
    tracker = Tracker("group", said.append)
    tracker.close(Broken(), RESULT, {}, {})
    tracker.abort(Broken())
    monkeypatch.setattr(tracker, "_open", lambda *_: Broken())
    tracker.report(study_page(), Path("report"), {})
    assert said == [
        f"W&B lost the end of {PLAN.run_id} (No space left on device); its results are on disk",
        "W&B lost the report (No space left on device); it is on disk",
    ]
