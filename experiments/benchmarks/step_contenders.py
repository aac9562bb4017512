"""The contenders of train_step.py that run with this project's own libraries, each in a process of its own.

Part of train_step.py, which says what they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from experiments.benchmarks.seesr_pair import serve
from megasr.networks.config import AdapterConfig
from megasr.networks.network import MegaSRNetwork
from megasr.networks.sites import Semantics
from megasr.prior import Prior

Steps = dict[str, Callable[[], Any]]
GUIDANCE = ("hed", "depth", "segmentation")
_WIDTHS = (96, 192, 384, 384)
SIZES: dict[str, Any] = {
    "unet": {
        "sample_size": 32,
        "block_out_channels": _WIDTHS,
        "cross_attention_dim": 256,
        "attention_head_dim": [width // 16 for width in _WIDTHS],
        "use_linear_projection": True,
    },
    "batch": 2,
    "text_tokens": 77,
    "image_tokens": 145,
    "image_width": 512,
}
_DOWNSAMPLING = 8


def random_inputs() -> dict[str, torch.Tensor]:
    """What every contender is given."""
    batch, latent, width = SIZES["batch"], SIZES["unet"]["sample_size"], SIZES["unet"]["cross_attention_dim"]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "z_t": normal(batch, 4, latent, latent),
        "timesteps": torch.randint(0, 1000, (batch,), generator=generator),
        "text": normal(batch, SIZES["text_tokens"], width),
        "image": normal(batch, SIZES["image_tokens"], SIZES["image_width"]),
        "lq_up": torch.rand(batch, 3, *[_DOWNSAMPLING * latent] * 2, generator=generator),
    }


def build_plain() -> Steps:
    """diffusers' own pair."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    given = random_inputs()
    unet = UNet2DConditionModel(**SIZES["unet"])
    control = ControlNetModel.from_unet(unet)
    unet.requires_grad_(False)

    def predict() -> torch.Tensor:
        first = (given["z_t"], given["timesteps"], given["text"])
        skips, middle = control(*first, given["lq_up"], return_dict=False)
        return unet(*first, down_block_additional_residuals=skips, mid_block_additional_residual=middle).sample

    def train() -> None:
        control.zero_grad()
        F.mse_loss(predict(), given["z_t"]).backward()

    return {"train": train, "denoise": torch.no_grad()(predict)}


def build_network(**changes: Any) -> MegaSRNetwork:
    """Full MegaSR at the reduced widths; keyword arguments change the adapter."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    depth = _DOWNSAMPLING.bit_length()
    vae = AutoencoderKL(
        block_out_channels=(8,) * depth,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        norm_num_groups=1,
    )  # only its down-sampling is asked for
    prior = Prior(vae, UNet2DConditionModel(**SIZES["unet"]), None, DDPMScheduler()).freeze()  # type: ignore[arg-type]
    adapter = {"guidance": GUIDANCE, "image": True, "image_width": SIZES["image_width"]}
    return MegaSRNetwork(prior, AdapterConfig(**(adapter | changes))).train()


def build_megasr(network: MegaSRNetwork) -> Steps:
    """Steps of the adapted network."""
    given = random_inputs()
    height, width = given["lq_up"].shape[-2:]
    maps = {g.name: torch.rand(SIZES["batch"], g.channels, height, width) for g in network.guidance}
    semantics = Semantics(given["text"], given["image"])

    def conditions() -> Any:
        return network.conditions(given["lq_up"], semantics, maps)

    def predict(known: Any) -> torch.Tensor:
        return network(given["z_t"], given["timesteps"], known)

    def train() -> None:
        network.zero_grad()
        F.mse_loss(predict(conditions()), given["z_t"]).backward()

    cached: list[Any] = []

    @torch.no_grad()
    def denoise() -> None:
        if not cached:
            cached.append(conditions())
        predict(cached[0])

    return {"train": train, "denoise": denoise, "denoise_first": torch.no_grad()(lambda: predict(conditions()))}


def build_compiled() -> Steps:
    """Steps of the network with every block compiled, as model.compile does it."""
    network = build_network()
    network.compile_blocks()
    return build_megasr(network)


CONTENDERS: dict[str, Callable[[], Steps]] = {
    "megasr": lambda: build_megasr(build_network()),
    "plain": build_plain,
    "recomputing": lambda: build_megasr(build_network(gradient_checkpointing=True)),
    "compiled": build_compiled,
}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    serve(CONTENDERS[sys.argv[1]]())
