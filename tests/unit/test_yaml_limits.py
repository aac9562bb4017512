"""A configuration of a few lines that stands for 10^9 values is refused at once, wherever YAML is read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from megasr import cli
from megasr.configs import check_config_files, load_yaml

_ALIASES = [", ".join([f"*a{n}"] * 10) for n in range(8)]
LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{aliases}]\n" for n, aliases in enumerate(_ALIASES, 1))
HOSTILE = {
    "laughs": (f"{LAUGHS}model: *a8\n", "more than 100000 values with its aliases written out, line 6"),
    "merged": (
        "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{a}]}}\n" for n, a in enumerate(_ALIASES, 1)),
        "more than 100000 values with its aliases written out, line 6",
    ),
    "itself": ("model: &a {adapter: *a}\n", r"\*a contains itself or nothing, line 1"),
    "deep": ("model: " + "[" * 100_000 + "\n", "nested more than 100 levels deep, line 1"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_refused_at_once(kind: str) -> None:
    text, says = HOSTILE[kind]
    began = time.monotonic()
    with pytest.raises(yaml.YAMLError, match=says):
        load_yaml(text)
    assert time.monotonic() - began < 1


def test_ordinary_aliases_and_all_recipes_are_read() -> None:
    assert load_yaml("a: &x {k: 1}\nb: {<<: *x, l: 2}\nc: [*x, *x]") == {
        "a": {"k": 1}, "b": {"k": 1, "l": 2}, "c": [{"k": 1}] * 2,
    }  # fmt: skip
    assert load_yaml("") is None
    recipes = list((Path(__file__).parents[2] / "experiments").rglob("*.yaml"))
    assert recipes
    for path in recipes:
        assert load_yaml(path.read_text()) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize(
    "command",
    [
        ["fit", "--config"],
        ["pretrain", "--config"],
        ["study", "plan", "prior_selection", "--output", "out", "--config"],
        ["doctor", "--config"],
    ],
    ids=["fit", "pretrain", "study", "doctor"],
)
def test_every_command_refuses_it_in_one_line(
    command: list[str], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, says = HOSTILE[kind]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert cli.main([*command, str(path)]) == 2
    error = capsys.readouterr().err
    assert says.replace("\\", "") in error
    assert str(path) in error
    assert error.count("\n") == 1


def test_a_value_on_the_command_line_has_the_same_limits(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    value = "{" + LAUGHS.replace("\n", ", ") + "b: 1}"
    assert cli.main(["fit", "--data", "SceneDataModule", "--model.adapter.guidance", value]) == 2
    assert time.monotonic() - began < 60
    assert "guidance" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["{" + "seed_everything: 1, " * 20 + "seed_everything: 2}", "~nobody-of-this-name/x"])
def test_what_names_no_file_is_passed_over(given: str) -> None:
    check_config_files(["--config", given])
