"""Every registered study: its ablations differ from the reference inside what they touch, and a recipe exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablations.plan import RunPlan, default_components, plan_runs, read_recipe
from ablations.registry import check_diff, studies
from megasr.errors import UsageError
from megasr.evaluation.protocol import WEIGHT_FREE_V1

STUDIES = sorted(studies())
ABLATIONS = [pytest.param(name, a.name, id=f"{name}-{a.name}") for name in STUDIES for a in studies()[name].ablations]


def _plans(root: Path, study: str) -> dict[str, RunPlan]:
    recipe = read_recipe(root / "experiments" / "tiny" / f"{study}.yaml", default_components())
    assert recipe.study == study
    return {run.ablation: run for run in plan_runs(studies()[study], recipe, default_components(), seeds=[0])}


@pytest.mark.parametrize(("study", "name"), ABLATIONS)
def test_the_difference_is_not_empty_and_inside_touches(root: Path, study: str, name: str) -> None:
    plans = _plans(root, study)
    reference, ablation = studies()[study].reference, studies()[study].ablation(name)
    before = {**plans[reference.name].config}
    check_diff(ablation, before, plans[name].config)
    assert ablation.description


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_a_negative_control_or_no_claim(study: str) -> None:
    assert "negative" in studies()[study].controls.values()
    assert studies()[study].question.endswith("?")


@pytest.mark.parametrize("study", STUDIES)
def test_the_primary_metric_is_measured(study: str) -> None:
    assert WEIGHT_FREE_V1.metric(studies()[study].primary_metric).needs_hq


@pytest.mark.parametrize("study", STUDIES)
def test_every_guidance_type_of_a_study_is_registered(root: Path, study: str) -> None:
    from megasr.guidance.registry import get_guidance

    for plan in _plans(root, study).values():
        for name in plan.guidance:
            assert get_guidance(name).name == name


@pytest.mark.parametrize("study", STUDIES)
def test_a_recipe_starts_with_its_lab_note(root: Path, study: str) -> None:
    lines = (root / "experiments" / "tiny" / f"{study}.yaml").read_text().splitlines()
    note = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    for word in ("Question", "Command", "Time", "Expect"):
        assert any(line.startswith(f"# {word}:") for line in note), word


def test_an_unknown_key_in_a_real_recipe_is_an_error(root: Path, tmp_path: Path) -> None:
    text = (root / "experiments" / "tiny" / "prior_selection.yaml").read_text()
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("  controlnet:", "  controlnett:"))
    assert path.read_text() != text
    with pytest.raises(UsageError, match="controlnett"):
        read_recipe(path, default_components())
