"""Stable Diffusion XL's U-Net with adapters, against diffusers' own modules, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLPipeline

from megasr.errors import MegaSRError, UsageError
from megasr.networks.lora import add_lora, sharing_copy
from megasr.networks.network import MegaSRNetwork
from megasr.prior import Prior, load_prior
from megasr.training.probes import SiteProbes, trained_parts
from megasr.weights.local import read_sizes
from tests.helpers.inference import move_weights
from tests.helpers.networks import adapter, random_inputs
from tests.helpers.sdxl import sdxl_folder

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def prior() -> Prior:
    return load_prior(sdxl_folder())


def wide_inputs(prior: Prior) -> dict[str, Any]:
    """An image of 16 x 32 px in place of a square."""
    inputs = random_inputs(prior)
    inputs["z_t"], inputs["lq_up"] = inputs["z_t"][..., :4, :], inputs["lq_up"][..., :16, :]
    return inputs


@torch.no_grad()
def test_the_text_is_embedded_as_diffusers_embeds_it(prior: Prior) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder(), local_files_only=True)
    # Without a negative prompt diffusers puts zeros in its place, which is here the empty prompt.
    states, empty_states, pooled, empty_pooled = pipeline.encode_prompt(["a b", "b", "a b"])
    text = prior.text_encoder(["a b", "b", "", "a b"])
    torch.testing.assert_close(text.states[[0, 1, 3]], states)
    torch.testing.assert_close(text.pooled[[0, 1, 3]], pooled)
    assert torch.equal(text.states[2], empty_states[0]) and torch.equal(text.pooled[2], empty_pooled[0])
    assert text.states.shape == (4, 8, 40) and not torch.equal(text.states[0], text.states[1])


@torch.no_grad()
def test_the_empty_prompt_is_embedded_where_the_folder_says_so(tmp_path: Path) -> None:
    folder = shutil.copytree(sdxl_folder(), tmp_path / "prior")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    _, states, _, pooled = pipeline.encode_prompt(["a b"])
    text = load_prior(str(folder)).text_encoder([""])
    torch.testing.assert_close(text.states, states)
    torch.testing.assert_close(text.pooled, pooled)
    assert text.pooled.abs().max() > 0


@torch.no_grad()
def test_unet_and_controlnet_are_diffusers_with_the_size_of_their_own_image(prior: Prior) -> None:
    inputs = wide_inputs(prior)
    network = MegaSRNetwork(prior, adapter(image=True, guidance=("canny",)))
    ours, text = network.controlnet.model, inputs["semantics"].text
    for parameter in ours.parameters():  # zero layers would hide everything
        parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(parameter.numel()))
    theirs = ControlNetModel.from_unet(prior.unet, conditioning_embedding_out_channels=(16, 32, 96))
    theirs.load_state_dict(ours.state_dict())
    time_ids = torch.tensor([[16.0, 32.0, 0.0, 0.0, 16.0, 32.0]] * 2)
    added = {"text_embeds": text.pooled, "time_ids": time_ids}
    made = network.conditions(inputs["lq_up"], inputs["semantics"], inputs["maps"])
    got = network.controlnet(inputs["z_t"], inputs["timesteps"], made.f_lq, made.controlnet, made.text)
    skips, middle = theirs(
        inputs["z_t"], inputs["timesteps"], text.states, inputs["lq_up"], added_cond_kwargs=added, return_dict=False
    )
    assert torch.equal(got.middle, middle) and all(torch.equal(a, b) for a, b in zip(got.skips, skips, strict=True))
    residuals = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
    arguments = (inputs["z_t"], inputs["timesteps"], text.states)
    expected = prior.unet(*arguments, added_cond_kwargs=added, **residuals).sample
    assert torch.equal(network(inputs["z_t"], inputs["timesteps"], made), expected)
    bare = prior.unet(*arguments, added_cond_kwargs=added).sample
    assert torch.equal(prior.predict(inputs["z_t"], inputs["timesteps"], text), bare)
    added["time_ids"] = time_ids.roll(1, dims=1)
    assert not torch.equal(prior.unet(*arguments, added_cond_kwargs=added).sample, bare), "sizes do nothing"


@torch.no_grad()
def test_every_layer_reads_text_and_the_last_of_a_block_image_tokens_too(prior: Prior) -> None:
    network, semantics = MegaSRNetwork(prior, adapter(image=True)), random_inputs(prior)["semantics"]
    layers = [len(block.transformer_blocks) for block, _ in network.sites]
    assert layers == [1, 2, 2, 2, 2, 1, 1, 1, 2, 2]  # U-Net: down, middle, up; ControlNet: down, middle
    for block, site in network.sites:
        read, last = site.read(block, semantics), block.transformer_blocks[-1].attn2
        assert torch.equal(site.csm.to_k.weight, last.to_k.weight) and torch.equal(
            site.csm.to_v.weight, last.to_v.weight
        )
        for layer, (keys, values) in zip(block.transformer_blocks, read.text, strict=True):
            for projected, projection in ((keys, layer.attn2.to_k), (values, layer.attn2.to_v)):
                assert torch.equal(projected.transpose(1, 2).flatten(2), projection(semantics.text.states))


def test_the_branch_of_the_image_tokens_is_added_in_the_last_layer(prior: Prior) -> None:
    network, inputs = move_weights(MegaSRNetwork(prior, adapter(image=True, controlnet=False))), random_inputs(prior)
    block, site = network.sites[1]
    features = torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    condition = network.read(inputs["semantics"]).unet[1]
    seen: dict[str, list[torch.Tensor]] = {"first": [], "last": []}
    for name, layer in zip(seen, block.transformer_blocks, strict=True):
        layer.ff.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0].detach()))
    for image in (condition.image, None):
        site(block, features, condition._replace(image=image))
    assert torch.equal(*seen["first"]) and not torch.equal(*seen["last"])


def test_branches_are_measured_at_every_block(prior: Prior) -> None:
    network = move_weights(MegaSRNetwork(prior, adapter(image=True, guidance=("canny",))))
    inputs = random_inputs(prior)
    with torch.no_grad(), SiteProbes(network) as probes:
        made = network.conditions(inputs["lq_up"], inputs["semantics"], inputs["maps"])
        network(inputs["z_t"], inputs["timesteps"], made)
        probes.take()
    strengths = probes.means(probes.totals(torch.device("cpu")))
    assert len(strengths) == len(probes.keys) == 10 * 2 and all(value > 0 for value in strengths.values())
    assert set(trained_parts(network)) == {"lq_encoder", "controlnet", "csm", "msfm"}


def test_a_lora_leaves_layers_alone_that_read_the_whole_prompt(prior: Prior) -> None:
    names = [name for name, _ in add_lora(sharing_copy(prior.unet), 2, 0).named_parameters() if ".lora_" in name]
    assert any("transformer_blocks.1.attn2.to_k" in name for name in names)
    assert not any("add_embedding" in name or "time_embedding" in name for name in names)


def test_sizes_are_read_without_loading() -> None:
    sizes = read_sizes(Path(sdxl_folder()))
    assert sizes is not None and sizes.multiple == 16 and sizes.native_px == 64


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer", "tokenizer_2"])
def test_a_part_that_its_folder_lacks_is_named(tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(sdxl_folder(), tmp_path / "prior")
    shutil.rmtree(folder / part)
    with pytest.raises(MegaSRError, match=f"is not a diffusers folder, it lacks {part}$"):
        load_prior(str(folder))


def test_the_refiner_is_refused_and_the_base_named(tmp_path: Path) -> None:
    folder = shutil.copytree(sdxl_folder(), tmp_path / "prior")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    with pytest.raises(MegaSRError, match="it lacks text_encoder, tokenizer; SDXL's refiner is no prior, use its base"):
        load_prior(str(folder))


@pytest.mark.parametrize(("field", "value"), [("time_cond_proj_dim", 8), ("addition_embed_type", "text_image")])
def test_other_added_conditions_are_refused(field: str, value: object) -> None:
    prior = load_prior(sdxl_folder())
    prior.unet.register_to_config(**{field: value})
    with pytest.raises(UsageError, match=f"{field}={value!r}; use one of Stable Diffusion 1.x, 2.x or XL"):
        MegaSRNetwork(prior, adapter())
