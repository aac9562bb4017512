"""The MMDiT of Stable Diffusion 3 with adapters, against diffusers' own modules, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import SD3ControlNetModel, StableDiffusion3Pipeline

from megasr.errors import MegaSRError, UsageError
from megasr.networks.config import AdapterConfig
from megasr.networks.msfm import MSFM
from megasr.networks.network import MegaSRNetwork
from megasr.prior import Prior, load_prior
from megasr.training.config import SamplerConfig
from megasr.training.probes import SiteProbes, trained_parts
from megasr.weights.local import read_sizes
from tests.helpers.inference import move_weights
from tests.helpers.networks import adapter, random_inputs
from tests.helpers.sd3 import sd3_folder, write_sd3_prior
from tests.helpers.sources import ROOT
from tests.helpers.training import make_batch, make_module

pytestmark = pytest.mark.filterwarnings("ignore")
# The second column of the table of priors that are not supported.
OTHERS = re.findall(r"^\|[^|]*\| `(\w+Transformer2DModel)` \|", (ROOT / "docs/priors.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def prior() -> Prior:
    return load_prior(sd3_folder())


def conditions(network: MegaSRNetwork, inputs: dict[str, Any]) -> Any:
    return network.conditions(inputs["lq_up"], inputs["semantics"], inputs["maps"])


@torch.no_grad()
def test_the_text_is_embedded_as_diffusers_embeds_it(prior: Prior) -> None:
    prompts = ["a b", "", "a b"]
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_folder(), local_files_only=True)
    states, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
    text = prior.text_encoder(prompts)
    torch.testing.assert_close(text.states, states, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(text.pooled, pooled, atol=1e-4, rtol=1e-4)
    assert not torch.equal(text.states[0], text.states[1])


@torch.no_grad()
def test_without_t5_its_states_are_zeros_as_in_diffusers() -> None:
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_folder(t5=False), local_files_only=True, **absent)
    states, *_ = pipeline.encode_prompt(["a b"], None, None, do_classifier_free_guidance=False)
    text = load_prior(sd3_folder(t5=False)).text_encoder(["a b"])
    torch.testing.assert_close(text.states, states, atol=1e-4, rtol=1e-4)
    assert text.states.shape == (1, 8 + 256, 64) and not text.states[:, 8:].any() and text.states[:, :8].any()


@torch.no_grad()
def test_the_controlnet_is_diffusers_on_the_first_half_of_the_blocks(tmp_path: Path) -> None:
    prior = load_prior(str(write_sd3_prior(tmp_path, num_layers=5)))
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(image=True, guidance=("canny",)))
    ours = network.controlnet.model
    assert len(ours.transformer_blocks) == 2 and prior.unet.config.num_layers == 5
    theirs = SD3ControlNetModel.from_config({**prior.unet.config, "num_layers": 2})
    with torch.random.fork_rng(devices=[]):
        for parameter in [p for p in ours.parameters() if p.requires_grad]:  # zero layers would hide everything
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(parameter.numel()))
    theirs.pos_embed_input = Flat(network.controlnet.lq_encoder)
    theirs.load_state_dict(
        {n.replace("pos_embed_input.", "pos_embed_input.encoder."): v for n, v in ours.state_dict().items()}
    )
    made, text = conditions(network, inputs), inputs["semantics"].text
    got = network.controlnet(inputs["z_t"], inputs["timesteps"], made.f_lq, made.controlnet, text)
    arguments = {"encoder_hidden_states": text.states, "pooled_projections": text.pooled, "return_dict": False}
    (expected,) = theirs(inputs["z_t"], inputs["lq_up"], timestep=inputs["timesteps"], **arguments)
    assert len(got) == 2 and all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert all(residual.abs().max() > 0 for residual in got)
    velocity = network.unet(inputs["z_t"], inputs["timesteps"], made.unet, got, text)
    (by_diffusers,) = prior.unet(
        inputs["z_t"], timestep=inputs["timesteps"], block_controlnet_hidden_states=expected, **arguments
    )
    assert torch.equal(velocity, by_diffusers), "residuals go to other blocks"


class Flat(torch.nn.Module):
    """An encoder of images as an embedding of tokens."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.encoder(image).flatten(2).transpose(1, 2)


@torch.no_grad()
def test_without_norms_of_keys_and_queries_as_in_sd_3(tmp_path: Path) -> None:
    prior = load_prior(str(write_sd3_prior(tmp_path, qk_norm=None, dual_attention_layers=())))
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(image=True, guidance=("canny",)))
    bare = prior.predict(inputs["z_t"], inputs["timesteps"], inputs["semantics"].text)
    made = conditions(network, inputs)
    assert torch.equal(network(inputs["z_t"], inputs["timesteps"], made), bare)
    move_weights(network)
    assert not torch.allclose(network(inputs["z_t"], inputs["timesteps"], conditions(network, inputs)), bare)


@torch.no_grad()
def test_msfm_on_tokens_is_msfm_on_features_with_the_norm_of_every_token() -> None:
    settings = {"edge_channels": [1], "region_channels": 3, "width": 8, "fusion_init": "residual", "stage1": "v2"}
    on_tokens = move_weights(MSFM(12, groups=None, **settings))
    features = torch.randn(2, 12, 4, 6, generator=torch.Generator().manual_seed(0))
    maps = [torch.rand(2, c, 4, 6, generator=torch.Generator().manual_seed(c)) for c in (1, 3)]
    got = on_tokens(features.flatten(2).transpose(1, 2), on_tokens.modulate(maps))
    parts = [saft(part) for saft, part in zip(on_tokens.safts, maps, strict=True)]
    scale, shift = (sum(part[i] for part in parts) for i in (0, 1))
    mean, variance = features.mean(1, keepdim=True), features.var(1, keepdim=True, correction=0)
    expected = features + (features - mean) / (variance + 1e-6).sqrt() * scale + shift
    torch.testing.assert_close(got, expected.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_the_visual_branch_reads_projections_of_text_and_not_those_of_the_second_attention(prior: Prior) -> None:
    network = MegaSRNetwork(prior, adapter(image=True))
    semantics = random_inputs(prior)["semantics"]
    for block, site in network.sites[: len(network.unet.sites)]:
        keys, values = site.read(block, semantics).image
        tokens, joint = site.csm.connector(semantics.image), block.attn
        heads = [layer(tokens).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (joint.add_k_proj, joint.add_v_proj)]
        assert torch.equal(keys, joint.norm_added_k(heads[0])) and torch.equal(values, heads[1])
    assert network.sites[0][0].use_dual_attention and not network.sites[1][0].use_dual_attention


def test_branches_are_measured_at_every_block(prior: Prior) -> None:
    network = move_weights(MegaSRNetwork(prior, adapter(image=True, guidance=("canny", "superpixel"))))
    inputs = random_inputs(prior)
    with torch.no_grad(), SiteProbes(network) as probes:
        network(inputs["z_t"], inputs["timesteps"], conditions(network, inputs))
        probes.take()
    strengths = probes.means(probes.totals(torch.device("cpu")))
    assert len(strengths) == len(probes.keys) == 4 * 3 and all(value > 0 for value in strengths.values())
    assert {"gate/unet.transformer0", "modulation/controlnet.transformer0/canny"} <= set(strengths)
    assert set(trained_parts(network)) == {"lq_encoder", "controlnet", "csm", "msfm"}


def test_sizes_are_read_without_loading() -> None:
    sizes = read_sizes(Path(sd3_folder()))
    assert sizes is not None and sizes.multiple == 8 and sizes.native_px == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rca": True}, "adapter.rca follows"),
        ({"guidance": ("canny",), "fusion_init": "as_drawn"}, "adapter.fusion_init as_drawn"),
    ],
)
def test_what_cannot_work_on_tokens_is_refused(prior: Prior, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MegaSRNetwork(prior, AdapterConfig(**changes))


def test_solvers_of_another_noise_are_refused() -> None:
    with pytest.raises(UsageError, match="sampler.solver dpm"):
        make_module(prior=sd3_folder(), sampler=SamplerConfig(num_steps=2, solver="dpm++"))


def test_an_image_beyond_the_priors_positions_is_refused_and_names_tiles() -> None:
    module = make_module(prior=sd3_folder()).eval()
    with pytest.raises(UsageError, match="positions for 48 on a side; use tiles"):
        module.restore(make_batch(1, side_px=200))


def test_a_part_that_its_folder_lacks_is_named(tmp_path: Path) -> None:
    folder = write_sd3_prior(tmp_path)
    for part in ("tokenizer_3", "tokenizer_2", "text_encoder_2", "transformer"):
        shutil.rmtree(folder / part)
        said = "unet or transformer" if part == "transformer" else part
        with pytest.raises(MegaSRError, match=f"is not a diffusers folder, it lacks .*{said}"):
            load_prior(str(folder))


@pytest.mark.parametrize("name", OTHERS)
def test_other_classes_of_denoisers_are_refused_by_name_as_documented(name: str, tmp_path: Path) -> None:
    assert hasattr(diffusers, name) and len(OTHERS) == 5
    folder = write_sd3_prior(tmp_path)
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("SD3Transformer2DModel", name))
    with pytest.raises(MegaSRError, match=f"{name}, but must be one of UNet2DConditionModel, SD3"):
        load_prior(str(folder))
