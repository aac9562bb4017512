"""Text states that were computed once stand in for a prior's text encoder: the same prior and steps, no encoder."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from megasr.errors import MegaSRError, UsageError
from megasr.networks.config import AdapterConfig
from megasr.prior import Prior, load_prior
from megasr.semantics import text_states
from megasr.semantics.tags import TaggerConfig
from megasr.semantics.text import TextEncoder, TextStates, load_text_encoder
from megasr.semantics.text_states import StoredText, add_text_states
from megasr.system import MegaSR, possible_prompts
from megasr.training.config import ObjectiveConfig, OptimizerConfig, SamplerConfig
from megasr.training.memory_plan import GIB, Planner
from megasr.training.memory_setup import TrainingSetup
from megasr.training.module import MegaSRModule
from tests.helpers.measured_memory import measure_step
from tests.helpers.sd3 import sd3_folder, write_sd3_prior
from tests.helpers.sdxl import sdxl_folder
from tests.helpers.training import LossCurve, fit, make_batch, prior_folder

FOLDERS = {"sd": prior_folder, "sdxl": sdxl_folder, "sd3": sd3_folder, "sd3 without T5": lambda: sd3_folder(t5=False)}
PROMPTS = ["", "a b", "b", "a", "a, b"]
# Rounding to float16: half of its last of 11 digits, or half of the smallest number it has.
ROUNDING = {"rtol": 2**-11, "atol": 2**-25}


class Made(NamedTuple):
    """A prior's folder and that of its text states."""

    prior: str
    states: Path


def make(prior: str, states: Path, prompts: list[str] | None = None) -> Made:
    add_text_states(states, prior, PROMPTS if prompts is None else prompts, batch_size=2)
    return Made(prior, states)


@pytest.fixture(scope="module", params=FOLDERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(FOLDERS[request.param](), tmp_path_factory.mktemp("states") / "made")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(sd3_folder(), tmp_path_factory.mktemp("states") / "made")


@pytest.fixture
def changed(sd3: Made, tmp_path: Path) -> Made:
    """A copy to damage."""
    return Made(sd3.prior, Path(shutil.copytree(sd3.states, tmp_path / "copy")))


def load(made: Made) -> Prior:
    return load_prior(made.prior, str(made.states))


# What is read is what the encoder gives ------------------------------------------------------------------------------


@torch.no_grad()
def test_prompts_have_the_states_of_the_encoder_up_to_the_rounding_of_float16(made: Made) -> None:
    prompts = ["a b", "", "a b", "b"]
    expected, found = load_prior(made.prior).text_encoder(prompts), load(made).text_encoder(prompts)
    assert type(found) is type(expected)
    for values, exact in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, exact, **ROUNDING)


def test_the_prior_is_the_same_one_without_the_weights_of_its_text_encoder(made: Made) -> None:
    full, light = load_prior(made.prior), load(made)
    assert light.fingerprint() == full.fingerprint()
    names = {name for name, _ in full.named_parameters() if not name.startswith("text_encoder.")}
    assert {name for name, _ in light.named_parameters()} == names == set(light.state_dict())
    for prior in (full, light):
        next(prior.unet.parameters()).data += 1
    assert light.fingerprint() == full.fingerprint() != load(made).fingerprint(), "the U-Net's weights still count"


def test_rows_of_zeros_are_not_stored(tmp_path: Path) -> None:
    made = make(sd3_folder(t5=False), tmp_path / "states")
    encoder = load_text_encoder(Path(made.prior))
    stored = np.load(made.states / "states.npy")
    length, width = 8, 16 + 24  # of the CLIPs
    assert stored.shape == (len(PROMPTS), length, width) and stored.dtype == np.float16
    assert encoder(["a"]).states.shape[1:] == (length + 256, encoder.width)
    assert load(made).text_encoder(["a"]).states.shape[1:] == (length + 256, encoder.width)


def test_it_follows_the_dtype_of_the_module(sd3: Made) -> None:
    text = load(sd3).to(torch.bfloat16).text_encoder(["a"])
    assert text.states.dtype == text.pooled.dtype == torch.bfloat16


def test_copies_and_processes_share_one_memory_map(sd3: Made) -> None:
    encoder = load(sd3).text_encoder
    for again in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder)), encoder):
        assert all(isinstance(array, np.memmap) for array in again.stored.arrays)
        assert not any(array.flags.writeable for array in again.stored.arrays)
    assert len(pickle.dumps(encoder.stored)) < 1000


# Errors ---------------------------------------------------------------------------------------------------------------


def test_an_unknown_prompt_is_shown_with_the_command_that_adds_it(sd3: Made) -> None:
    with pytest.raises(MegaSRError) as error:
        load(sd3).text_encoder(["a", "a red house"])
    assert "'a red house'" in str(error.value)
    assert f"megasr embed --prior {sd3.prior} --prompts FILE --output {sd3.states}" in str(error.value)


@pytest.mark.parametrize("other", ["weights", "tokenizer", "without T5"])
def test_states_of_another_text_encoder_are_refused(sd3: Made, tmp_path: Path, other: str) -> None:
    folder = Path(shutil.copytree(sd3.prior, tmp_path / "prior"))
    if other == "weights":
        weights = folder / "text_encoder_3" / "model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif other == "tokenizer":
        (folder / "tokenizer_3" / "tokenizer.json").write_text("{}")
    else:
        shutil.rmtree(folder / "text_encoder_3")
    with pytest.raises(UsageError, match="text_states .* made by another text encoder than that of the prior"):
        load_prior(str(folder), str(sd3.states))
    with pytest.raises(UsageError, match="made by another text encoder"):
        add_text_states(sd3.states, str(folder), ["new"])


def test_a_copy_of_the_prior_elsewhere_and_another_denoiser_are_taken(sd3: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd3.prior, tmp_path / "prior"))
    assert load_prior(str(folder), str(sd3.states)).fingerprint() == load_prior(sd3.prior).fingerprint()
    shutil.rmtree(folder / "transformer")
    shutil.copytree(write_sd3_prior(tmp_path / "deeper", num_layers=5) / "transformer", folder / "transformer")
    assert load_prior(str(folder), str(sd3.states)).fingerprint() == load_prior(str(folder)).fingerprint()


def _drop(folder: Path) -> None:
    (folder / "pooled.npy").unlink()


def _cut(folder: Path) -> None:
    content = (folder / "states.npy").read_bytes()
    (folder / "states.npy").write_bytes(content[: len(content) // 2])


def _forget(folder: Path) -> None:
    (folder / "prompts.json").write_text(json.dumps(PROMPTS[1:]))


def _weigh(folder: Path) -> None:
    text = (folder / "encoder.json").read_text()
    (folder / "encoder.json").write_text(text.replace("text", "test").replace("clips.0", "clips.1", 1))


def _spoil(folder: Path) -> None:
    (folder / "card.json").write_text("{}")


@pytest.mark.parametrize("damage", [_drop, _cut, _forget, _weigh, _spoil])
def test_a_damaged_folder_is_one_error(changed: Made, damage: Any) -> None:
    damage(changed.states)
    with pytest.raises(MegaSRError, match=f"text states in {changed.states} .*make them (again )?with megasr embed"):
        load(changed)


def test_a_folder_that_is_not_there_is_one_error(sd3: Made, tmp_path: Path) -> None:
    with pytest.raises(MegaSRError, match="absent: there are no text states; make them with megasr embed"):
        load_prior(sd3.prior, str(tmp_path / "absent"))


def test_a_tagger_that_reads_lq_has_no_prompts_that_are_known(sd3: Made) -> None:
    with pytest.raises(UsageError, match="model.text_states .* model.tagger clip makes them of lq"):
        MegaSR(sd3.prior, AdapterConfig(), tagger=TaggerConfig("clip"), text_states=str(sd3.states))


# Writing --------------------------------------------------------------------------------------------------------------


def test_prompts_are_added_and_those_that_are_there_are_not_encoded_again(
    changed: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    tokenise = TextEncoder.forward

    def watch(self: TextEncoder, prompts: Any) -> Any:
        asked.extend(prompts)
        return tokenise(self, prompts)

    monkeypatch.setattr(TextEncoder, "forward", watch)
    before = np.load(changed.states / "states.npy")
    assert add_text_states(changed.states, changed.prior, ["b b", "b", "b b"]) == 1
    assert set(asked) == {"b b"}
    assert json.loads((changed.states / "prompts.json").read_text()) == [*PROMPTS, "b b"]
    assert np.array_equal(np.load(changed.states / "states.npy")[: len(PROMPTS)], before)
    encoder = load_text_encoder(Path(changed.prior))
    torch.testing.assert_close(load(changed).text_encoder(["b b"]).pooled, encoder(["b b"]).pooled, **ROUNDING)
    card = json.loads((changed.states / "card.json").read_text())
    assert card["prompts"] == len(PROMPTS) + 1
    assert add_text_states(changed.states, changed.prior, PROMPTS) == 0


@pytest.mark.parametrize("fault", ["error", "not finite"])
def test_it_is_written_whole_or_not_at_all(
    changed: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    forward = TextEncoder.forward

    def fail(self: TextEncoder, prompts: Any) -> Any:
        if "b a" not in prompts:
            return forward(self, prompts)
        if fault == "error":
            raise MegaSRError("the encoder broke")
        return TextStates(*(values * 1e9 for values in forward(self, prompts)))

    monkeypatch.setattr(TextEncoder, "forward", fail)
    says = "the encoder broke" if fault == "error" else "'b a'.*float16"
    for folder in (changed.states, tmp_path / "new"):
        with pytest.raises(MegaSRError, match=says):
            add_text_states(folder, changed.prior, ["a a", "b a"], batch_size=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
    assert StoredText(changed.states).rows.keys() == set(PROMPTS)


def test_what_does_not_fit_on_the_disk_is_not_begun(sd3: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_states, "free_bytes", lambda folder: 10**4)
    with pytest.raises(MegaSRError, match=r"2 prompts take 6.*e-05 GB, on the disk of .* 1e-05 GB are free"):
        add_text_states(tmp_path / "states", sd3.prior, ["a", "b"])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(sd3: Made, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(UsageError, match="holds something else"):
        add_text_states(tmp_path, sd3.prior, ["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_prompts_of_a_training() -> None:
    sampler = SamplerConfig(positive_prompt="clean", negative_prompt="blur")
    asked = possible_prompts(AdapterConfig(), sampler, ["cat, fur", "", "cat, fur"], ["dog", ""])
    assert sorted(asked) == ["", "blur", "cat, fur", "clean", "dog", "dog, clean"]
    assert sorted(possible_prompts(AdapterConfig(text=False), sampler, ["cat"], ["dog"])) == ["", "blur"]


# Training -------------------------------------------------------------------------------------------------------------


def module(made: Made, **changes: Any) -> MegaSRModule:
    settings: dict[str, Any] = {
        "adapter": AdapterConfig(guidance=("canny",), saft_width=8),
        "objective": ObjectiveConfig(text_dropout=0.3),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "sampler": SamplerConfig(num_steps=2, guidance_scale=2.0, start_fraction=0.8),
    }
    return MegaSRModule(made.prior, **{**settings, **changes})


def test_training_with_states_is_training_with_the_encoder(made: Made, tmp_path: Path) -> None:
    """States are rounded by 2**-11 = 0.05 %; losses move by less, and a tenth of it is a thousand times float32's."""
    batch = make_batch(side_px=64) | {"tags": ["a b", "b"]}
    curves, modules = [], []
    for states in (None, str(made.states)):
        curves.append(LossCurve())
        modules.append(module(made, text_states=states))
        trainer = fit(modules[-1], batch, 3, callbacks=[curves[-1]])
    full, light = (torch.tensor(curve.losses) for curve in curves)
    torch.testing.assert_close(light, full, rtol=2**-11, atol=0)
    assert len(full) == 3 and full.unique().numel() == 3
    trainer.save_checkpoint(tmp_path / "adapter.ckpt")
    back = MegaSR.from_checkpoint(tmp_path / "adapter.ckpt")
    assert any(True for _ in back.prior.text_encoder.parameters()), "the full prior, whatever the prompts"
    assert back.settings["text_states"] is None
    batch["tags"] = ["a", "a, b"]
    sr = [system.eval().restore(batch) for system in (modules[1], back)]
    torch.testing.assert_close(*sr, rtol=0, atol=2e-3)


def test_the_other_way_round_an_adapter_of_the_full_prior_goes_on_with_states(sd3: Made, tmp_path: Path) -> None:
    batch = make_batch(side_px=64) | {"tags": ["a b", "b"]}
    fit(module(sd3), batch, 1).save_checkpoint(tmp_path / "adapter.ckpt")
    assert module(sd3, init=str(tmp_path / "adapter.ckpt"), text_states=str(sd3.states)).prior_fingerprint


def test_terms_that_compare_with_and_without_words_read_them(sd3: Made) -> None:
    objective = ObjectiveConfig(kind="one_step", terms={"l1": 1.0, "csd": 1.0})
    sampler = SamplerConfig(num_steps=1, start="noiseless_lq", start_fraction=0.25)
    adapter = AdapterConfig(guidance=("canny",), saft_width=8)
    light = module(sd3, adapter=adapter, objective=objective, sampler=sampler, text_states=str(sd3.states))
    fit(light, make_batch(side_px=64) | {"tags": ["a b", "b"]}, 1)


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [sd3_folder, pytest.param(sdxl_folder, marks=pytest.mark.slow)])
def test_the_memory_plan_leaves_the_encoder_out_and_says_so(prior: Any) -> None:
    setup = TrainingSetup({"prior": prior(), "adapter": {"saft_width": 8}}, batch_size=1, crop_size_px=64, on_gpu=False)
    full, light = (Planner().plan(s) for s in (setup, setup.with_model("text_states", "not made yet")))
    encoder = sum(p.numel() * p.element_size() for p in load_text_encoder(Path(prior())).parameters())
    saved = full.parts["frozen weights"] - light.parts["frozen weights"]
    assert saved == pytest.approx(encoder, rel=0.02)
    assert light.notes == ("model.text_states: the text encoder is not loaded, and not counted",)
    assert not full.notes


def test_the_plan_is_what_the_allocator_gives_out(sd3: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredText, "row", lambda self, prompt, source: 0)  # the batch has tags of its own
    model = {"prior": sd3.prior, "adapter": {"guidance": ["noise"], "saft_width": 8}, "text_states": str(sd3.states)}
    setup = TrainingSetup(model, batch_size=1, crop_size_px=64, on_gpu=False)
    peak, _ = measure_step(setup)
    assert Planner().plan(setup).total_gib * GIB == pytest.approx(peak, rel=0.02)
