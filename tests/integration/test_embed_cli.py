"""`megasr embed`, and the training that reads what it has made: no prompt is missing, no text encoder is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from megasr import cli
from megasr.images import write_png
from megasr.semantics import text
from tests.helpers.sd3 import sd3_folder
from tests.helpers.shard_sets import encoded, make_shards, pixels

TAGS = ["a", "b", "a b", ""]
EVAL_TAGS = ["b a", ""]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on shards for the training and a folder for the evaluation, with both prompts of the sampler."""
    folder = tmp_path_factory.mktemp("embed")
    make_shards(
        folder / "shards",
        [2, 2],
        lambda n: (f"photo {n}", {"png": encoded(pixels(n, 72, 72)), "txt": TAGS[n].encode()}),
    )
    for number, tags in enumerate(EVAL_TAGS):
        (folder / "eval").mkdir(exist_ok=True)
        write_png(pixels(9 + number, 64, 64), folder / "eval" / f"{number}.png")
        (folder / "eval" / f"{number}.txt").write_text(tags)
    config = {
        "model": {
            "prior": sd3_folder(),
            "adapter": {"guidance": ["canny"], "saft_width": 8},
            "objective": {"text_dropout": 0.5, "validation_timesteps": 1},
            "sampler": {
                "num_steps": 1, "guidance_scale": 2.0, "start_fraction": 0.8,
                "positive_prompt": "a a", "negative_prompt": "b b",
            },
        },
        "data": {
            "class_path": "ShardDataModule",
            "init_args": {
                "train_url": str(folder / "shards"), "eval_url": str(folder / "eval"), "degradation": "bicubic",
                "crop_size_px": 64, "batch_size": 2, "train_samples": 4,
            },
        },
        "monitor": {"every_n_steps": 2, "images": 2},
        "trainer": {
            "max_steps": 4, "accelerator": "cpu", "default_root_dir": str(folder / "run"), "logger": False,
            "enable_progress_bar": False, "num_sanity_val_steps": 0,
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def states(recipe: Path) -> Path:
    assert cli.main(["embed", "--config", str(recipe), "--output", str(recipe.parent / "states")]) == 0
    return recipe.parent / "states"


def test_every_prompt_of_the_recipe_is_there_once(states: Path) -> None:
    prompts = json.loads((states / "prompts.json").read_text())
    assert sorted(prompts) == sorted({*TAGS, *EVAL_TAGS, "b b", "b a, a a", "a a"})
    assert len(np.load(states / "states.npy")) == len(prompts)


def test_a_training_and_a_test_ask_for_nothing_else_and_load_no_text_encoder(
    states: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*unused: object) -> None:
        raise AssertionError("a text encoder was loaded")

    monkeypatch.setattr(text, "_read_encoder", fail)
    options = ["--config", str(recipe), f"--model.text_states={states}"]
    assert cli.main(["fit", *options]) == 0, capsys.readouterr().err
    run = recipe.parent / "run"
    assert cli.main(["test", *options, f"--ckpt_path={run / 'last.ckpt'}"]) == 0, capsys.readouterr().err
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert not any("text_encoder" in name for name in checkpoint["state_dict"])


def test_what_it_says(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "states"
    args = ["embed", "--config", str(recipe), "--output", str(output), "--model.sampler.negative_prompt", "b a b"]
    assert cli.main(args) == 0
    lines = capsys.readouterr()
    first, last = lines.out.splitlines()
    each = ((8 + 256) * 64 + 40) * 2
    assert f"8 prompts take {8 * each / 1e9:.3g} GB, on the disk of {output} " in first
    assert f"8 are to be encoded, {each / 1e6:.3g} MB each" in first
    assert last == f"model.text_states: {output}"
    assert "encoding prompts  8/8" in lines.err and "reading tags of the training  4/4" in lines.err
    (tmp_path / "more.txt").write_text("b a b\na b a\n")
    args = ["embed", "--prior", sd3_folder(), "--prompts", str(tmp_path / "more.txt"), "--output", str(output)]
    assert cli.main(args) == 0
    assert "9 prompts take" in (out := capsys.readouterr().out) and "1 are to be encoded" in out
    assert cli.main(args) == 0
    assert f"{output} has all of these prompts, and 9 in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "nothing to embed: give --config RECIPE, or --prior PRIOR --prompts FILE"),
        (["--prior", "tiny"], "nothing to embed: give --config RECIPE"),
        (["--prior", "tiny", "--prompts", "absent.txt", "--model.seed", "1"], "unrecognized arguments: --model.seed 1"),
        (["--prior", "tiny", "--prompts", "absent.txt"], "cannot read the prompts in absent.txt"),
        (["--prior", "tiny", "--prompts", "x", "--batch-size", "0"], "--batch-size is 0, must be greater than 0"),
        (["--prior", "tiny", "--prompts", "x", "--device", "tpu9"], "--device tpu9 cannot be used"),
        (["--config", "RECIPE", "--model.tagger.kind", "clip"], "model.tagger clip makes tags of lq"),
        (["--config", "RECIPE", "--data", "SceneDataModule"], "SceneDataModule makes its tags while it draws"),
        (["--config", "RECIPE", "--data.train_url", "nowhere"], "nowhere"),
        (["--config", "RECIPE", "--model.sede", "1"], "unknown key 'model.sede'"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if says.startswith(("--device",)):
        (tmp_path / "x").write_text("a")
    options = [str(recipe) if word == "RECIPE" else word for word in options]
    assert cli.main(["embed", *options, "--output", "states"]) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megasr: error: ")]
    assert says in line
    assert not (tmp_path / "states").exists()
