"""Recipes and plans: what is read, what is refused, and which ids come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ablations.plan import (
    BICUBIC,
    Components,
    RunPlan,
    default_components,
    plan_run,
    plan_runs,
    read_recipe,
    resolve,
)
from ablations.registry import Ablation, Study, apply_changes
from ablations.studies import get_study
from megasr.errors import UsageError
from tests.helpers.tiny_study import tiny_components, write_recipe


@pytest.fixture(scope="module")
def components() -> Components:
    return tiny_components()


def _plan(path: Path, components: Components, **changes: object) -> list[RunPlan]:
    recipe = read_recipe(path, components, changes.pop("steps", None))  # type: ignore[arg-type]
    return plan_runs(get_study("prior_selection"), recipe, components, **changes)  # type: ignore[arg-type]


def test_defaults_are_filled_in(tmp_path: Path, components: Components) -> None:
    config = read_recipe(write_recipe(tmp_path), components).config
    assert config["model"] == {
        "adapter": {"guidance": [], "width": 4},
        "sampler": {"brightness": 0.0},
        "scale_factor": 4,
        "seed": 0,
    }
    assert config["data"]["init_args"]["size_px"] == 64
    assert config["trainer"]["max_steps"] == 2


def test_the_plan_is_bicubic_then_whole_seeds(tmp_path: Path, components: Components) -> None:
    runs = _plan(write_recipe(tmp_path), components)
    names = ["none", "hed", "depth", "segmentation", "canny", "hed+depth", "hed+segmentation", "hed+canny"]
    names += ["depth+segmentation", "depth+canny", "segmentation+canny", "hed+depth+segmentation", "hed+depth+canny"]
    names += ["hed+segmentation+canny", "depth+segmentation+canny", "hed+depth+segmentation+canny", "noise", "oracle"]
    assert [(run.ablation, run.seed) for run in runs] == [
        (BICUBIC, None),
        *[(name, 0) for name in names],
        *[(name, 1) for name in names],
    ]
    combined = runs[12]
    assert combined.guidance == ("hed", "depth", "segmentation")
    assert len({run.training for run in runs}) == len(runs)  # each has a training of its own
    assert runs[-1].config["model"]["seed"] == runs[-1].config["data"]["init_args"]["seed"] == 1
    assert combined.max_steps == 2
    assert runs[0].max_steps == 0
    assert runs[0].guidance == ()


def test_ids_are_stable_and_follow_every_setting(tmp_path: Path, components: Components) -> None:
    runs = _plan(write_recipe(tmp_path), components)
    assert runs == _plan(write_recipe(tmp_path), components)
    assert len({run.run_id for run in runs}) == len(runs)
    assert runs[1].run_id.startswith("prior_selection-none-s0-")
    longer = _plan(write_recipe(tmp_path), components, steps=3)
    assert longer[0].run_id == runs[0].run_id  # bicubic does not train
    assert not {run.run_id for run in longer[1:]} & {run.run_id for run in runs}
    only = _plan(write_recipe(tmp_path), components, seeds=[1])
    assert {run.run_id for run in only} < {run.run_id for run in runs}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width: 4", "widht: 4", "widht"),
        ("width: 4", "width: wide", "width"),
        ("photos: 3", "photo: 3", "photo"),
        ("max_steps: 2,", "", r"trainer\.max_steps must be 1 or more"),
        ("max_steps: 2", "max_step: 2", "max_step"),
        ("devices: 1", "logger: false", "logger"),  # the runner's own
        ("seeds: [0, 1]", "seeds: 2", r"study\.seeds must be a list of integers, got 2"),
        ("seeds: [0, 1]", "seeds: [0, 0]", r"distinct and at least one, got \[0, 0\]"),
        ("seeds: [0, 1]", "seeds: []", r"distinct and at least one, got \[\]"),
        ("seeds: [0, 1]", "seeds: [0], least_difference: -1", "least_difference must be a number of 0 or more, got -1"),
        ("seeds: [0, 1]", "seeds: [0], least_difference: .nan", "least_difference must be a number of 0 or more"),
        ("seeds: [0, 1]", "seeds: [0], least_difference: a bit", "must be a number of 0 or more, got 'a bit'"),
        ("seeds: [0, 1]", "seed: 0", "unknown key of study in .* 'seed'; did you mean seeds"),
        (", seeds: [0, 1]", "", "section study has the keys name and seeds"),
        ("study: {", "studies: {", "has the sections study, model, data and trainer"),
        ("study: {", "study: }", "is not YAML"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, components: Components, old: str, new: str, message: str) -> None:
    path = write_recipe(tmp_path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        _plan(path, components)


def test_a_recipe_is_utf8_with_or_without_a_mark(tmp_path: Path, components: Components) -> None:
    path = write_recipe(tmp_path)
    text = path.read_text()
    path.write_bytes(f"\ufeff{text}".encode())
    read_recipe(path, components)
    path.write_bytes(f"# für\n{text}".encode("latin-1"))
    with pytest.raises(UsageError, match=r"recipe .*: not UTF-8"):
        read_recipe(path, components)


def test_a_missing_recipe_is_named(tmp_path: Path, components: Components) -> None:
    with pytest.raises(UsageError, match=r"cannot read recipe .*nothing\.yaml: No such file"):
        read_recipe(tmp_path / "nothing.yaml", components)


def test_an_ablation_without_effect_is_refused(tmp_path: Path, components: Components) -> None:
    recipe = read_recipe(write_recipe(tmp_path), components)
    path = "model.adapter.width"
    reference = Ablation("wide", {path: 8}, (path,), "")
    same = Study("widths", "?", reference, (Ablation("also_wide", {path: 8}, (path,), ""),), "psnr_y")
    with pytest.raises(UsageError, match="'also_wide' changes nothing"):
        plan_runs(same, recipe, components)
    other = Study("widths", "?", reference, (Ablation("narrow", {path: 2}, (path,), ""),), "psnr_y")
    runs = plan_runs(other, recipe, components, seeds=[5])
    assert [run.config["model"]["adapter"]["width"] for run in runs[1:]] == [8, 2]


def test_an_unknown_protocol_of_a_recipe_is_refused(tmp_path: Path, components: Components) -> None:
    path = write_recipe(tmp_path)
    path.write_text(path.read_text().replace("seeds: [0, 1]", "seeds: [0], protocol: paired-v7"))
    with pytest.raises(UsageError, match="unknown protocol 'paired-v7'; did you mean paired-v1"):
        read_recipe(path, components)


OBJECTIVE = Path(__file__).parents[3] / "experiments" / "tiny" / "objective.yaml"


@pytest.fixture(scope="module")
def one_step() -> dict[str, Any]:
    """The config of the study objective's reference, resolved."""
    components, study = default_components(), get_study("objective")
    return resolve(apply_changes(read_recipe(OBJECTIVE, components).config, study.reference), components)


SHOWN = {"shown_guidance": [], "positive_prompt": "sharp", "guidance_scale": 2.0}  # how a trained adapter is shown
TRAINED = {"num_steps": 2, "start": "lq", "start_fraction": 0.5}


@pytest.mark.parametrize(("field", "value"), [*SHOWN.items(), *TRAINED.items()])
@pytest.mark.parametrize("samples", [True, False], ids=["one_step", "denoise"])
def test_a_training_depends_on_the_sampler_that_it_trains(
    one_step: dict[str, Any], samples: bool, field: str, value: object
) -> None:
    model = one_step["model"]
    if not samples:
        model = {**model, "objective": {**model["objective"], "kind": None, "terms": None}}
    changed = {**model, "sampler": {**model["sampler"], field: value}}
    first, second = (plan_run("objective", "x", 0, {**one_step, "model": config}) for config in (model, changed))
    assert first.run_id != second.run_id
    assert (first.training == second.training) == (not samples or field in SHOWN)
