"""Every recipe that `megasr fit` reads: its lab note, and a smaller twin of it that trains and restores."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from megasr.errors import UsageError
from megasr.training.probes import PARTS, trained_parts
from tests.helpers.recipes import FIT_RECIPES, STEPS, Materials, Witness, fit, read_note, read_recipe, twin
from tests.helpers.sources import ROOT

FULL_SIZE = [path for path in FIT_RECIPES if path.parent.name in ("sd21", "sdxl", "sd35")]
recipes = pytest.mark.parametrize("path", FIT_RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
full_size_recipes = pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: path.stem)
# A number, or the words that say there is none.
MEASURED = re.compile(r"\d|not measured yet")


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    return Materials(tmp_path_factory.mktemp("materials"))


def test_the_full_size_recipes_are_there() -> None:
    assert {path.stem for path in FULL_SIZE} >= {
        "controlnet_only",
        "seesr_like",
        "holisdip_like",
        "megasr",
        "megasr_v1",
        "osediff_like",
        "pisa_like",
        "hypir_like",
        "megasr_one_step",
        "dit4sr_like",
    }


@recipes
def test_a_twin_trains_and_restores(
    path: Path, materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_recipe(path)
    witness = Witness()
    command = fit(twin(config, materials), tmp_path, monkeypatch, witness)
    module, data = command.model, command.datamodule
    assert command.trainer.global_step == STEPS

    adapter = config["model"]["adapter"]
    wanted = {"csm": "image", "rca": "rca", "msfm": "guidance", "controlnet": "controlnet", "lq_encoder": "controlnet"}
    wanted |= {name: name for name in ("lq_stream", "prior_lora", "encoder_lora")}
    missing = {"controlnet": True}  # AdapterConfig's defaults that are on
    expected = {part for part in PARTS if adapter.get(wanted[part], missing.get(wanted[part]))}
    assert set(trained_parts(module.network)) == expected

    # DDP waits for ever, or refuses, when a trained tensor takes no part in a backward pass.
    assert not witness.unused
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained - witness.reached == set()
    assert module.prior.fingerprint() == module.prior_fingerprint

    (batch,) = data.val_dataloader()
    sr = module.eval().restore(data.on_after_batch_transfer(batch, 0))
    assert sr.shape == batch["hq"].shape
    assert torch.isfinite(sr).all() and sr.std() > 0


@recipes
def test_the_lab_note_is_complete(path: Path) -> None:
    note = read_note(path)
    relative = str(path.relative_to(ROOT))
    assert "?" in note["Question"]
    in_makefile = "make " in note["Command"] and relative in (ROOT / "Makefile").read_text()
    assert relative in note["Command"] or in_makefile, "the command runs another file"
    assert MEASURED.search(note["Time"])
    reference = re.search(r"experiments/reference/\S+\.csv", note["Numbers"])
    assert (ROOT / reference[0]).is_file() if reference else MEASURED.search(note["Numbers"])


@full_size_recipes
def test_the_note_of_a_full_size_recipe_says_where_its_numbers_are_from(path: Path) -> None:
    note, config = read_note(path), read_recipe(path)
    assert re.search(r"arXiv \d{4}\.\d{5}|github\.com/\S+", note["Source"])
    assert MEASURED.search(note["Memory"])
    assert note["Differs from the original"]
    batch = [config["trainer"]["devices"], config["data"]["init_args"]["batch_size"]]
    batch.append(config["trainer"]["accumulate_grad_batches"])
    product = batch[0] * batch[1] * batch[2]
    assert [int(number) for number in re.findall(r"\d+", note["Batch"])] == [*batch, product]


@full_size_recipes
def test_a_full_size_recipe_restores_photographs(path: Path) -> None:
    from megasr.guidance.registry import resolve_guidance

    guidance = resolve_guidance(read_recipe(path)["model"]["adapter"].get("guidance", ()))
    assert {kind.source for kind in guidance} <= {"lq"}


@pytest.mark.parametrize("section", ["model.adapter", "model", "data.init_args", "trainer"])
def test_an_unknown_key_is_an_error(
    section: str, materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = twin(read_recipe(FULL_SIZE[0]), materials)
    target = config
    for part in section.split("."):
        target = target[part]
    target["capshun"] = 1
    with pytest.raises(UsageError, match="capshun"):
        fit(config, tmp_path, monkeypatch, Witness())
