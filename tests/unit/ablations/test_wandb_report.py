"""The W&B Report of a study, as it is sent: what answers is this test, not W&B."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wandb_workspaces.reports.v2 import interface

from ablations.tables import ranking_table
from ablations.tracking import Tracker
from ablations.wandb_report import REPORT_FILE, save_report
from tests.helpers.study_page import study_page, with_pictures

PAGE = study_page()


class Answers:
    """What W&B would answer; keeps the reports that it is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.client = SimpleNamespace(app_url="https://wandb.test")

    def projects(self, entity: str) -> list[SimpleNamespace]:
        """One project."""
        return [SimpleNamespace(name="megasr")]

    def execute(self, api: object, query: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Of a GraphQL request."""
        if "spec" not in variables:
            return {"project": {"internalId": "p1"}}
        self.sent.append(dict(variables))
        view = {name: variables[name] for name in ("name", "displayName", "description", "spec")}
        project = {"id": "p1", "name": variables["projectName"], "entityName": variables["entityName"]}
        return {"upsertView": {"view": view | {"id": variables["id"] or f"v{len(self.sent)}", "project": project}}}


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    monkeypatch.setattr(interface, "_get_api", lambda: answers)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.test")
    monkeypatch.setattr(interface, "execute_graphql", answers.execute)
    return answers


def test_it_says_the_answer_and_shows_the_runs_of_this_study(wandb: Answers, tmp_path: Path) -> None:
    page = with_pictures(PAGE, tmp_path, 1)
    save_report(page, "selection-1234", "lab", "megasr", tmp_path)
    spec = wandb.sent[0]["spec"]
    for sentence in (*page.answer, page.trust, *page.notes):
        assert json.dumps(sentence, ensure_ascii=False)[1:-1] in spec
    table = ranking_table(page.ranking, page.metrics, "Difference to none in lpips").markdown()
    assert json.dumps(table, ensure_ascii=False)[1:-1] in spec
    assert spec.count('"value":"selection-1234"') == 2  # both sets of runs, and no others
    for key in (
        *(f"test/{metric.name}" for metric in page.metrics),
        "figures/ranking",
        *(f"pictures/{key}" for key in page.pictures["hq"]),
    ):
        assert key in spec


def test_a_study_has_one_report_per_project(wandb: Answers, tmp_path: Path) -> None:
    first = save_report(PAGE, "g", "lab", "megasr", tmp_path)
    assert first.startswith("https://wandb.test/lab/megasr/reports/")
    assert save_report(PAGE, "g", "lab", "megasr", tmp_path) == first
    assert save_report(PAGE, "g", "other", "megasr", tmp_path) != first
    assert [report["id"] for report in wandb.sent] == [None, "v1", None]
    assert json.loads((tmp_path / REPORT_FILE).read_text())["entity"] == "other"


def test_a_report_that_wandb_refuses_is_one_line(
    wandb: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("permission denied\nand more")

    monkeypatch.setattr(interface, "execute_graphql", refuse)
    said: list[str] = []
    Tracker("g", said.append)._write(PAGE, "lab", "megasr", tmp_path)
    assert said == ["W&B took no Report (permission denied); its run of the study holds the same"]
    assert not (tmp_path / REPORT_FILE).exists()


def test_names_and_reasons_are_no_markup(wandb: Answers, tmp_path: Path) -> None:
    markup = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) | b\n# c"
    escaped = r"\<img src=x onerror=alert(1)\> \[a\](javascript:alert(1)) \| b \# c"
    ranking = PAGE.ranking.assign(label=[f"{markup} {number}" for number in range(len(PAGE.ranking))])
    page = replace(PAGE, answer=(markup,), trust=markup, ranking=ranking, notes=(markup,), failures={"run": markup})
    save_report(replace(page, provenance={markup: "value"}), "selection-1234", "lab", "megasr", tmp_path)
    spec = wandb.sent[0]["spec"]
    text = json.dumps(escaped)[1:-1]
    for line in (text, f"**Controls.** {text}", f"| {text} 0 ", f"- {text}", f"- run: {text}", f"- {text}: value"):
        assert line in spec
    assert markup.split("|")[0] not in json.dumps(json.loads(spec)["blocks"])
