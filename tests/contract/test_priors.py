"""Every class of prior on a tiny random checkpoint in diffusers' own format: what an adapter on it must do.

A stream of lq's tokens in the place of the ControlNet is a case of its own.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megasr.diffusion import guided
from megasr.images import upsample_lq
from megasr.inference.pipeline import MegaSRPipeline
from megasr.inference.tiling import Grid, Guidance, TiledDenoiser
from megasr.networks.config import AdapterConfig
from megasr.networks.network import ADAPTED
from megasr.prior import DENOISERS, load_prior
from megasr.training.config import CriticConfig, ObjectiveConfig, OptimizerConfig, SamplerConfig
from megasr.training.memory_plan import GIB, Planner
from megasr.training.memory_setup import TrainingSetup
from megasr.training.module import MegaSRModule
from megasr.training.sharding import sharding_units
from tests.helpers.inference import move_weights, photograph
from tests.helpers.measured_memory import measure_step
from tests.helpers.recipes import Witness
from tests.helpers.sd3 import sd3_folder
from tests.helpers.sdxl import sdxl_folder
from tests.helpers.training import LossCurve, fit, make_batch, make_module, prior_folder

SIDE_PX = 64
GUIDANCE = ("canny", "depth", "superpixel")  # an edge, and two regions that stage 1 mixes
ADAPTER = AdapterConfig(guidance=GUIDANCE, image=True, saft_width=8)
FOLDERS = {"sd": prior_folder, "sdxl": sdxl_folder, "sd3": sd3_folder}
LQ_STREAM = "sd3 with lq_stream"


@pytest.fixture(scope="module", params=[*FOLDERS, LQ_STREAM])
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def prior(case: str) -> str:
    """Folder of a prior of each class."""
    return FOLDERS[case.split()[0]]()


@pytest.fixture(scope="module")
def adapter(case: str) -> AdapterConfig:
    return replace(ADAPTER, controlnet=False, lq_stream=True) if case == LQ_STREAM else ADAPTER


@pytest.fixture(scope="module")
def moved(prior: str, adapter: AdapterConfig) -> MegaSRModule:
    """A module whose adapter does something everywhere."""
    sampler = SamplerConfig(num_steps=2, guidance_scale=2.0, start_fraction=0.8)
    return move_weights(make_module(prior=prior, adapter=adapter, sampler=sampler)).eval()


def inputs(module: MegaSRModule) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A batch, z_t and timesteps."""
    batch, generator = make_batch(side_px=SIDE_PX), torch.Generator().manual_seed(0)
    side = SIDE_PX // module.prior.downsampling
    z_t = torch.randn(2, module.prior.unet.config.in_channels, side, side, generator=generator)
    return batch, z_t, torch.tensor([100, 900])


@torch.no_grad()
def predict(module: MegaSRModule, **changes: Any) -> torch.Tensor:
    batch, z_t, timesteps = inputs(module)
    return module.network(z_t, timesteps, module.conditions(batch | changes))


def test_every_class_has_its_adapted_networks() -> None:
    assert set(ADAPTED) == set(DENOISERS)


def test_it_loads_and_its_latents_are_those_of_its_autoencoder(prior: str) -> None:
    loaded = load_prior(prior)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.fingerprint() == load_prior(prior).fingerprint()
    image, vae = torch.rand(1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0)), loaded.vae
    with torch.no_grad():
        mode = vae.encode(image * 2 - 1).latent_dist.mode()
        z = loaded.encode(image)
        torch.testing.assert_close(z, (mode - (vae.config.shift_factor or 0)) * vae.config.scaling_factor)
        torch.testing.assert_close(loaded.decode_unclipped(z), (vae.decode(mode).sample + 1) / 2)
    assert SIDE_PX % loaded.size_multiple == 0


def test_loading_is_quiet(prior: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging

    monkeypatch.setattr(logging, "_tqdm_active", True)  # an earlier load in this process has turned bars off
    load_prior(prior)
    assert "Loading weights" not in capfd.readouterr().err


def test_it_computes_in_float32_whatever_its_text_encoders_were_saved_in(prior: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(prior, tmp_path / "prior"))
    for weights in folder.glob("text_encoder*/model.safetensors"):
        save_file({name: value.half() for name, value in load_file(weights).items()}, weights, {"format": "pt"})
        config = json.loads(weights.with_name("config.json").read_text())
        config |= {"dtype": "float16"} if "dtype" in config else {}  # transformers' alone have one
        weights.with_name("config.json").write_text(json.dumps(config))
    loaded = load_prior(str(folder))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.fingerprint() == load_prior(prior).fingerprint()


def test_at_step_0_the_prior_is_unchanged_to_the_bit_and_later_not(
    prior: str, adapter: AdapterConfig, moved: MegaSRModule
) -> None:
    if adapter.lq_stream:
        pytest.skip("lq's tokens have a share in the softmax; what holds of them is in test_lq_stream.py")
    fresh = make_module(prior=prior, adapter=adapter).eval()
    batch, z_t, timesteps = inputs(fresh)
    with torch.no_grad():
        bare = fresh.prior.predict(z_t, timesteps, fresh.prior.text_encoder(batch["tags"]))
    assert torch.equal(predict(fresh), bare)
    assert not torch.allclose(predict(moved), bare, atol=1e-3)


def test_in_training_the_prior_stays_in_evaluation_mode(prior: str, adapter: AdapterConfig) -> None:
    network = make_module(prior=prior, adapter=adapter).train().network
    assert not any(part.training for part in network.unet.model.modules())
    assert all(part.training for part in network.unet.sites.modules() if any(True for _ in part.parameters(False)))
    for controlnet in network.models[1:]:
        assert any(part.training for part in controlnet.model.modules())


@pytest.mark.parametrize("name", [*GUIDANCE, "image_tokens", "tags", "lq"])
def test_every_condition_changes_the_prediction(moved: MegaSRModule, name: str) -> None:
    batch, _, _ = inputs(moved)
    maps = moved.guidance_maps(batch)
    before = predict(moved, maps=maps)
    if name in GUIDANCE:
        changed = predict(moved, maps=maps | {name: torch.zeros_like(maps[name])})
    else:
        value = ["a b"] * 2 if name == "tags" else batch[name] / 2  # type: ignore[literal-required]
        changed = predict(moved, maps=maps, **{name: value})
    assert (changed - before).abs().max() > 1e-5


@torch.no_grad()
def test_what_is_kept_between_steps_gives_what_is_made_anew(moved: MegaSRModule) -> None:
    """Both halves of guidance in one batch with kept conditions, against two passes that make theirs."""
    batch, z_t, _ = inputs(moved)
    lq_up, network = upsample_lq(batch["lq"], 4), moved.network
    semantics = moved.semantics(batch, lq_up, ["a b", "b"])
    negative = semantics._replace(text=moved.prior.text_encoder(["a"] * 2))
    maps = moved.guidance_maps(batch)
    shown, z_lq = [(1.0, network.saft_maps(maps, *z_t.shape[-2:]))], moved.prior.encode(lq_up)
    guidance = Guidance(network.read(negative), 3.0, None, 1000)
    grid = Grid.whole(SIDE_PX, SIDE_PX)
    kept = TiledDenoiser(network, lq_up, network.read(semantics), shown, grid, guidance, z_lq)
    for t in (900, 300, 300):
        timesteps = torch.full((2,), t)
        halves = [network(z_t, timesteps, network.conditions(lq_up, w, maps, z_lq)) for w in (semantics, negative)]
        expected = guided(*halves, 3.0)
        torch.testing.assert_close(kept(z_t, timesteps), expected, atol=2e-5 * float(expected.abs().max()), rtol=0)


def test_the_loss_falls_and_all_that_is_trained_learns(prior: str, adapter: AdapterConfig) -> None:
    adapter = replace(adapter, connector="shared", gate="channel", gradient_checkpointing=True)
    module = make_module(prior=prior, adapter=adapter, optimizer=OptimizerConfig(learning_rate=1e-3))
    curve, witness, fingerprint = LossCurve(), Witness(), module.prior.fingerprint()
    fit(module, make_batch(side_px=SIDE_PX), 20, callbacks=[curve, witness])
    assert sum(curve.losses[-5:]) < 0.95 * sum(curve.losses[:5])
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert not witness.unused and trained == witness.reached
    assert module.prior.fingerprint() == fingerprint


def test_recomputed_blocks_have_the_same_gradients(prior: str, adapter: AdapterConfig) -> None:
    found = []
    for recompute in (False, True):
        module = move_weights(make_module(prior=prior, adapter=replace(adapter, gradient_checkpointing=recompute)))
        batch, z_t, timesteps = inputs(module)
        module.network(z_t, timesteps, module.conditions(batch)).square().mean().backward()
        found.append([p.grad for p in module.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_one_step_training_reaches_adapter_and_loras(prior: str, adapter: AdapterConfig) -> None:
    objective = ObjectiveConfig(
        0.0, 0.0, kind="one_step", terms={"l1": 1.0, "csd": 1.0, "vsd": 1.0}, critic=CriticConfig(lora_rank=2)
    )
    module = make_module(
        prior=prior, adapter=replace(adapter, prior_lora=2), objective=objective,
        sampler=SamplerConfig(num_steps=1, start="noiseless_lq", start_fraction=0.25),
    )  # fmt: skip
    witness = Witness()
    fit(module, make_batch(side_px=SIDE_PX), 3, callbacks=[witness])
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert any(".lora_" in name and name.startswith("network.unet") for name in trained)
    assert not witness.unused and trained == witness.reached


def test_the_memory_of_a_step_is_predicted(prior: str, adapter: AdapterConfig) -> None:
    if prior == prior_folder():
        pytest.skip("a U-Net's is held against the allocator in test_memory_plan.py")
    lq_parts = {"controlnet": adapter.controlnet, "lq_stream": adapter.lq_stream}
    model = {
        "prior": prior,
        "adapter": {"guidance": ["noise"], "saft_width": 8, "prior_lora": 2, **lq_parts},
        "sampler": {"num_steps": 1, "start": "noiseless_lq", "start_fraction": 0.25},
        "objective": {"kind": "one_step", "terms": {"l1": 1.0, "vsd": 1.0}, "critic": {"lora_rank": 2}},
    }
    setup = TrainingSetup(model, batch_size=1, crop_size_px=SIDE_PX, on_gpu=False)
    peak, _ = measure_step(setup)
    assert Planner().plan(setup).total_gib * GIB == pytest.approx(peak, rel=0.02)


def test_an_exported_adapter_with_its_prior_upscales_as_before_whole_and_in_tiles(
    prior: str, adapter: AdapterConfig, tmp_path: Path
) -> None:
    sampler = SamplerConfig(num_steps=2, guidance_scale=2.0, start_fraction=0.8)
    module = make_module(prior=prior, adapter=replace(adapter, image=False), sampler=sampler)
    pipeline, photo = MegaSRPipeline(move_weights(module)), photograph(16, 24)
    pipeline.save_pretrained(tmp_path / "adapter", include_prior=True)
    again = MegaSRPipeline.from_pretrained(tmp_path / "adapter")
    assert again.module.settings["prior"] == str(tmp_path / "adapter" / "prior")
    for tile in (0, 64):
        first, second = (p(photo, output_type="pt", tile=tile).images for p in (pipeline, again))
        assert first.shape == (1, 3, 64, 96)
        # Where a weight lies in memory decides the last bit of matrix products on some processors (AMD EPYC, MKL).
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_sharding_gathers_every_trained_weight_of_a_block_once(moved: MegaSRModule) -> None:
    units = [part for unit in sharding_units(moved.network) for part in unit]
    owned = [p for part in units for p in part.parameters()]
    assert len({id(p) for p in owned}) == len(owned)
    in_sites = {id(p) for model in moved.network.models for p in model.sites.parameters()}
    assert in_sites <= {id(p) for p in owned}
