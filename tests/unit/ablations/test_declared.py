"""Studies that a user's YAML file declares: what they compare, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ablations.declared import declare
from ablations.plan import default_components
from ablations.runner import open_study
from megasr import cli
from megasr import system as parts
from megasr.errors import UsageError
from tests.helpers.recipes import cached_prior
from tests.helpers.sources import ROOT

EXAMPLE = ROOT / "examples" / "own_study.yaml"
PATH = Path("mine.yaml")
BASE: dict[str, Any] = {"name": "mine", "question": "What helps?", "primary_metric": "fsim", "seeds": [0]}


def test_every_combination_against_none() -> None:
    study = declare({**BASE, "combinations": {"of": ["hed", "depth", "canny"], "sizes": [1, 3]}}, PATH)
    assert study.reference.name == "none" and study.reference.changes == {"model.adapter.guidance": []}
    assert [a.name for a in study.ablations] == ["hed", "depth", "canny", "hed+depth+canny"]
    assert [a.combination for a in (study.reference, *study.ablations)][-1] == ("hed", "depth", "canny")
    shown = declare({**BASE, "combinations": {"of": ["hed"], "path": "model.sampler.shown_guidance"}}, PATH)
    assert shown.ablations[0].changes == {"model.sampler.shown_guidance": ["hed"]}


def test_a_grid_against_its_first_values() -> None:
    axes = {"model.adapter.gate": ["linear", "channel"], "model.optimizer.learning_rate": [1e-4, 2e-4]}
    study = declare({**BASE, "axes": axes}, PATH)
    assert study.reference.changes == {key: values[0] for key, values in axes.items()}
    named = {a.name: dict(a.changes) for a in study.ablations}
    assert set(named) == {"gate-channel", "learning_rate-0-0002", "gate-channel_learning_rate-0-0002"}
    assert named["gate-channel"] == {"model.adapter.gate": "channel", "model.optimizer.learning_rate": 1e-4}


def test_named_changes_controls_and_a_reference_of_ones_own() -> None:
    section = {
        **BASE,
        "reference": {"name": "start", "changes": {"model.adapter.saft_width": 8}, "description": "narrow"},
        "ablations": {"wide": {"changes": {"model.adapter.saft_width": 64}, "expected": "Better."}},
        "controls": {"wide": "positive"},
    }
    study = declare(section, PATH)
    assert (study.reference.name, study.reference.description) == ("start", "narrow")
    (wide,) = study.ablations
    assert wide.hypothesis == "Better." and wide.touches == ("model.adapter.saft_width",)
    assert study.controls == {"wide": "positive"}


def test_named_changes_that_are_combinations_are_compared_with_the_empty_one() -> None:
    change = {"changes": {"model.adapter.guidance": ["hed"]}}
    study = declare({**BASE, "ablations": {"hed": {**change, "combination": ["hed"]}}}, PATH)
    assert (study.reference.combination, study.ablations[0].combination) == ((), ("hed",))
    assert declare({**BASE, "ablations": {"hed": change}}, PATH).reference.combination is None


def test_the_study_of_mmsr_s_claim(tmp_path: Path) -> None:
    study = open_study("mmsr_claim", ROOT / "examples" / "mmsr_claim.yaml", tmp_path / "out").study
    assert (study.primary_metric, study.controls) == ("paired/dists", {"noise": "negative"})
    expected = {ablation.name: ablation.hypothesis for ablation in study.ablations}
    assert [name for name, words in expected.items() if words.startswith("Better in DISTS")] == [
        "hed",
        "segmentation",
        "hed+segmentation",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "mine.yaml: study.question must be text, got None"),
        ({"combinations": {"of": ["hed"]}, "controls": {"hed": "neg"}}, "hed must be negative or positive, got 'neg'"),
        ({}, "study mine compares nothing: give combinations, axes or ablations"),
        ({"combinations": {"off": ["hed"]}}, "unknown key of study.combinations in mine.yaml 'off'; did you mean of"),
        ({"combinations": {"of": "hed"}}, "study.combinations.of must be a list, got 'hed'"),
        ({"combinations": {"of": ["hed"], "sizes": [2]}}, "study.combinations.sizes must be from 1 to 1, got 2"),
        ({"axes": {"model.seed": []}}, r"study.axes.model.seed must be a list, got \[\]"),
        ({"ablations": {"a": {"change": {}}}}, "unknown key of study.ablations.a in mine.yaml 'change'"),
        ({"ablations": {"a": {}}}, "study.ablations.a.changes must be keys with values, got None"),
        ({"ablations": {"A b": {"changes": {"x": 1}}}}, "ablation name 'A b': use lower case"),
        ({"axes": {"x": [1, 2]}, "controls": {"y": "negative"}}, "unknown control of study mine 'y'"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        declare({**BASE, **changes}, PATH)


def written(folder: Path, **changes: Any) -> Path:
    """The example, too small to find anything out, with another section study."""
    config = yaml.safe_load(EXAMPLE.read_text())
    config["study"] |= {"seeds": [0], "combinations": {"of": ["canny"]}, "ablations": {}, "controls": {}, **changes}
    config["study"]["evaluation"]["photographs"] |= {"eval_crop_size_px": 64, "eval_samples": 2}
    config["data"]["init_args"] |= {"pool": 8, "train_samples": 16, "eval_samples": 2, "batch_size": 2}
    config["data"]["init_args"] |= {"crop_size_px": 32, "eval_crop_size_px": 64}
    config["trainer"] |= {"max_steps": 2, "accelerator": "cpu"}
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    return folder / "mine.yaml"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"axes": {"model.adapter.gait": ["linear", "channel"]}},
            "model.adapter.gait.*did you mean model.adapter.gate",
        ),
        ({"axes": {"model.adapter.gate": ["linear", "linear"]}}, "study.axes.model.adapter.gate names a value twice"),
        ({"primary_metric": "fsin"}, "fsin.*did you mean fsim"),
        ({"protocol": "weight-free-v9"}, "weight-free-v9.*did you mean weight-free-v"),
        ({"seed": [1]}, "unknown key of study in .*mine.yaml 'seed'; did you mean seeds"),
    ],
)
def test_mistakes_that_the_recipe_shows(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_study("own_study", written(tmp_path, **changes), tmp_path / "out", components=default_components())


@pytest.mark.filterwarnings("ignore")
def test_a_file_is_planned_run_and_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(parts, "load_prior", cached_prior)
    output = tmp_path / "out"

    def study(action: str, *options: str, **changes: Any) -> str:
        file = str(written(tmp_path, **changes))
        assert cli.main(["study", action, file, "--output", str(output), *options]) == 0
        return capsys.readouterr().out

    assert "3 runs: 0 done, 3 to do, with 2 trainings" in study("plan", "--no-probe")
    study("run", "--per-device", "1", protocol="weight-free-v2")
    page = (output / "index.html").read_text()
    assert "canny" in page and "spectral_peaks" in page
    grown = study("plan", "--no-probe", protocol="weight-free-v2", combinations={"of": ["canny", "superpixel"]})
    assert "5 runs: 3 done, 2 to do" in grown, "what is done is kept when the study grows"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "study nothing: give its recipe with --config, or the YAML file of a study of your own"),
        ("absent.yaml", "cannot read study absent.yaml: No such file"),
    ],
)
def test_what_is_no_study(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "plan", name, "--output", "out"]) == 2
    assert message in capsys.readouterr().err
