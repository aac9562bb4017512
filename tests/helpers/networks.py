"""Random priors and inputs small enough for a CPU test."""

from __future__ import annotations

import torch

from megasr.networks.config import AdapterConfig
from megasr.networks.network import MegaSRNetwork
from megasr.networks.sites import Semantics
from megasr.pretraining.text_to_image import NOISE_SCHEDULE, build_unet
from megasr.prior import Prior
from megasr.semantics.text import OpenClipTextEncoder

SIZE_PX = 32
IMAGE_WIDTH = 24
REPRESENTATION_WIDTH = 20


def random_prior(seed: int = 0, **unet_changes: object) -> Prior:
    """A prior of SD 2.1's classes with random weights; keyword arguments change the U-Net's config."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(24, 48, 64),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=8,
            norm_num_groups=1,
            mid_block_add_attention=False,
        )
        unet = build_unet(8, (32, 64, 96), (1, 2, 3), layers=1, text_width=32)
        text_encoder = OpenClipTextEncoder(context_length=32, width=32, heads=2, layers=2)
        if unet_changes:
            unet = UNet2DConditionModel.from_config({**unet.config, **unet_changes})
    return Prior(vae, unet, text_encoder, DDPMScheduler.from_config(NOISE_SCHEDULE)).freeze()


def random_inputs(prior: Prior, batch: int = 2, seed: int = 1) -> dict:
    """z_t, timesteps, lq_up, semantics and maps of every registered guidance type."""
    from megasr.guidance.registry import get_guidance, list_guidance

    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    latent = SIZE_PX // prior.downsampling
    with torch.no_grad():
        text = prior.text_encoder([f"brick wall {i}" for i in range(batch)])
    semantics = Semantics(text, rand(batch, 5, IMAGE_WIDTH), rand(batch, 6, REPRESENTATION_WIDTH))
    channels = {name: get_guidance(name).channels for name in list_guidance()}
    return {
        "z_t": torch.randn(batch, prior.unet.config.in_channels, latent, latent, generator=generator),
        "timesteps": torch.arange(1, batch + 1) * 100,
        "lq_up": rand(batch, 3, SIZE_PX, SIZE_PX),
        "semantics": semantics,
        "maps": {name: rand(batch, c, SIZE_PX, SIZE_PX) for name, c in channels.items()},
    }


def adapter(**changes: object) -> AdapterConfig:
    """An adapter config whose token widths fit `random_inputs`."""
    widths = {"image_width": IMAGE_WIDTH, "representation_width": REPRESENTATION_WIDTH, "saft_width": 16}
    return AdapterConfig(**{**widths, **changes})


def predict(network: MegaSRNetwork, inputs: dict) -> torch.Tensor:
    """One denoising step."""
    conditions = network.conditions(inputs["lq_up"], inputs["semantics"], inputs["maps"])
    return network(inputs["z_t"], inputs["timesteps"], conditions)


def train_steps(network: MegaSRNetwork, inputs: dict, steps: int = 3) -> None:
    """A few optimizer steps, so that zero-initialised layers are no longer zero. Gradients of the last stay."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (predict(network, inputs) - inputs["z_t"]).square().mean().backward()
        optimizer.step()
