"""How large an adapter is: trained and frozen parameters per part, and the number of sites, without any weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from megasr.networks.config import AdapterConfig
from megasr.networks.network import MegaSRNetwork
from megasr.prior import Prior

# Stable Diffusion 2.1-base, as its diffusers folder has it.
_SD21_UNET = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
}  # fmt: skip
_SD21_VAE = {
    "sample_size": 768, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_SD21_TEXT = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "hidden_act": "gelu", "projection_dim": 512,
}  # fmt: skip


@dataclass(frozen=True)
class PartSize:
    """One row of the table: parameters of a part, and its number of sites where it has any."""

    part: str
    trained: int
    frozen: int
    sites: int | None = None


def build_sd21() -> Prior:
    """Stable Diffusion 2.1-base with random weights and without a tokenizer, on torch's default device.

    It is 5 GB: ask for it on the meta device, or under torch's FakeTensorMode.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from megasr.semantics.text import TransformersTextEncoder

    text = TransformersTextEncoder(CLIPTextModel(CLIPTextConfig(**_SD21_TEXT)), tokenizer=None)
    return Prior(AutoencoderKL(**_SD21_VAE), UNet2DConditionModel(**_SD21_UNET), text, DDPMScheduler()).freeze()


def build_sd21_on_meta() -> Prior:
    """Stable Diffusion 2.1-base without weights, on the meta device: sizes only."""
    with torch.device("meta"):
        return build_sd21()


def parameter_table(prior: Prior, config: AdapterConfig) -> list[PartSize]:
    """Build the adapter on the meta device, where the prior goes too, and count each part; the last row is the sum."""
    with torch.device("meta"):
        network = MegaSRNetwork(prior.to("meta"), config)
    rows = [
        PartSize("VAE", *_count(prior.vae)),
        PartSize("text encoder", *_count(prior.text_encoder)),
        PartSize("U-Net", *_count(prior.unet)),
        *_site_rows("U-Net", network.unet.sites),
    ]
    for name, part in (("U-Net LoRA", network.unet.unet), ("VAE encoder LoRA", network.vae)):
        if part is not None and (trained := _count(part)[0]):
            rows.append(PartSize(name, trained, 0))
    if network.connector is not None:
        rows.append(PartSize("CSM connector", *_count(network.connector)))
    if network.controlnet is not None:
        controlnet = network.controlnet.controlnet
        encoder, _ = lq_encoder = _count(controlnet.controlnet_cond_embedding)
        rows += [PartSize("LQ encoder", *lq_encoder), PartSize("ControlNet", _count(controlnet)[0] - encoder, 0)]
        rows += _site_rows("ControlNet", network.controlnet.sites)
    return [*rows, PartSize("all", sum(r.trained for r in rows), sum(r.frozen for r in rows))]


def _site_rows(model: str, sites: nn.ModuleList) -> list[PartSize]:
    rows = []
    for name in ("csm", "rca", "msfm"):
        parts = nn.ModuleList(part for site in sites if (part := getattr(site, name)) is not None)
        if parts:
            rows.append(PartSize(f"{model} {name.upper()}", *_count(parts), len(parts)))
    return rows


def _count(module: nn.Module) -> tuple[int, int]:
    """(trained, frozen) parameters."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in module.parameters()) - trained
