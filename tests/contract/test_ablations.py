"""Every registered study: its ablations differ from the reference inside what they touch, and a recipe exists."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import yaml

from ablations.evaluation import find_metric, read_sets, study_metrics
from ablations.plan import RunPlan, build, default_components, plan_runs, read_recipe
from ablations.registry import Study, check_diff
from ablations.studies import studies
from megasr import system as parts
from megasr.errors import UsageError
from megasr.evaluation.protocol import get_protocol
from tests.helpers.recipes import cached_prior, write_sd_prior

STUDIES = sorted(studies())
RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "experiments").rglob("*.yaml"))
    if "study" in yaml.safe_load(path.read_text())
]
recipes = pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])


@functools.cache
def _plans(path: Path) -> tuple[Study, dict[str, RunPlan]]:
    recipe = read_recipe(path, default_components())
    study = recipe.declared or studies()[recipe.study]
    with pytest.MonkeyPatch.context() as patch:
        if path.parent.name in ("sd21", "world"):  # its weights are not a part of this repository
            patch.setattr("ablations.plan.identify_weights", lambda model: {})
        return study, {run.ablation: run for run in plan_runs(study, recipe, default_components(), seeds=[0])}


def test_every_study_has_a_recipe() -> None:
    declared = [study for path in RECIPES if (study := read_recipe(path, default_components()).declared)]
    assert {_plans(path)[0].name for path in RECIPES} - {study.name for study in declared} == set(STUDIES)


@recipes
def test_the_differences_are_not_empty_and_inside_touches(path: Path) -> None:
    study, plans = _plans(path)
    for ablation in study.ablations:
        check_diff(ablation, plans[study.reference.name].config, plans[ablation.name].config)
        assert ablation.description


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_of_guidance_types_has_a_negative_control(study: str) -> None:
    if any("model.adapter.guidance" in ablation.changes for ablation in studies()[study].ablations):
        assert "negative" in studies()[study].controls.values()
    assert studies()[study].question.endswith("?")


@recipes
def test_the_primary_metric_is_measured(path: Path) -> None:
    recipe = read_recipe(path, default_components())
    sets = read_sets(recipe.evaluation, get_protocol(recipe.protocol), default_components(), path)
    assert study_metrics(sets)[find_metric(sets, _plans(path)[0].primary_metric)][1].needs_hq


@recipes
def test_every_guidance_type_of_a_study_is_registered(path: Path) -> None:
    from megasr.guidance.registry import get_guidance

    for plan in _plans(path)[1].values():
        for name in plan.guidance:
            assert get_guidance(name).name == name


@recipes
def test_a_recipe_starts_with_its_lab_note(path: Path) -> None:
    lines = path.read_text().splitlines()
    note = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    for word in ("Question", "Command", "Time", "Expect"):
        assert any(line.startswith(f"# {word}:") for line in note), word


def test_an_unknown_key_in_a_real_recipe_is_an_error(root: Path, tmp_path: Path) -> None:
    text = (root / "experiments" / "tiny" / "prior_selection.yaml").read_text()
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("saft_width:", "saft_widht:"))
    assert path.read_text() != text
    with pytest.raises(UsageError, match="saft_widht"):
        read_recipe(path, default_components())


@pytest.mark.parametrize("name", ["prior_selection", "prior_selection_amortised"])
def test_every_run_of_the_selection_at_full_size_builds_its_adapter(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "load_prior", cached_prior)
    prior = str(write_sd_prior(tmp_path / "prior"))
    study, plans = _plans(root / "experiments" / "sd21" / f"{name}.yaml")
    for ablation in (study.reference, *study.ablations):
        model = plans[ablation.name].config["model"]
        sources = dict.fromkeys(model["extractors"]["sources"], "tiny")
        small = {**model, "prior": prior, "init": None, "extractors": {**model["extractors"], "sources": sources}}
        if small["objective"].get("terms"):  # without LPIPS, whose weights are not a part of this repository
            small["objective"] = {**small["objective"], "terms": {"l2": 4.0}}
        module = build(default_components(), {"model": small}).model
        assert {kind.name for kind in module.network.guidance} == set(plans[ablation.name].guidance)
        shown = model["sampler"].get("shown_guidance")
        used = plans[ablation.name].guidance if shown is None else shown
        assert ablation.combination is None or set(ablation.combination) == set(used)
    trainings = {plan.training for plan in plans.values() if plan.seed is not None}
    assert len(trainings) == (len(study.ablations) + 1 if name == "prior_selection" else 1)
