"""The parts of an adapter by the names of their parameters, and how large each is, without any weight."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from megasr.networks.config import AdapterConfig
from megasr.networks.mmdit import MegaSRMMDiT
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


# Stable Diffusion XL base 1.0.
_SDXL_UNET = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_SDXL_VAE = {**_SD21_VAE, "sample_size": 1024, "scaling_factor": 0.13025}
# CLIP ViT-L/14 and OpenCLIP ViT-bigG/14, which SDXL and SD 3 have.
_CLIP_TEXTS = (
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
     "projection_dim": 768},
    {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
     "hidden_act": "gelu", "projection_dim": 1280},
)  # fmt: skip


# Stable Diffusion 3.5 medium without its T5, which diffusers can do without.
_SD35_TRANSFORMER = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}  # fmt: skip
_SD35_VAE = {
    **_SD21_VAE, "sample_size": 1024, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip

PARTS = ("lq_encoder", "controlnet", "lq_stream", "csm", "rca", "msfm", "prior_lora", "encoder_lora")
# What names of parameters hold, by part; a part's first match counts.
_PLACES = (
    ("lq_encoder", "controlnet_cond_embedding"), ("lq_encoder", "pos_embed_input"), ("csm", ".csm."), ("rca", ".rca."),
    ("csm", "connector."), ("msfm", ".msfm."), ("lq_stream", ".lq_stream."), ("encoder_lora", "vae.encoder."),
    ("prior_lora", ".lora_"),
)  # fmt: skip


def part_of(parameter: str) -> str:
    """The part of PARTS that a trained parameter of the network belongs to, by its name."""
    return next((part for part, place in _PLACES if place in parameter), "controlnet")


@dataclass(frozen=True)
class PartSize:
    """One row of the table: parameters of a part, and its number of sites where it has any."""

    part: str
    trained: int
    frozen: int
    sites: int | None = None


def build_sd21(predicts: str = "epsilon", latent_px: int = 64) -> Prior:
    """Stable Diffusion 2.1-base with random weights and without a tokenizer, on torch's default device.

    It is 5 GB: ask for it on the meta device, or under torch's FakeTensorMode.

    Args:
        predicts: the scheduler's prediction_type.
        latent_px: height and width of the latents that it was trained on.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from megasr.semantics.text import TransformersTextEncoder

    text = TransformersTextEncoder(CLIPTextModel(CLIPTextConfig(**_SD21_TEXT)), tokenizer=None)
    unet = UNet2DConditionModel(**{**_SD21_UNET, "sample_size": latent_px})
    return Prior(AutoencoderKL(**_SD21_VAE), unet, text, DDPMScheduler(prediction_type=predicts)).freeze()


def build_sdxl() -> Prior:
    """Stable Diffusion XL base 1.0, as `build_sd21`: 14 GB in float32."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from megasr.semantics.text import SDXLTextEncoder

    first, second = (CLIPTextConfig(**sizes) for sizes in _CLIP_TEXTS)
    text = SDXLTextEncoder([(CLIPTextModel(first), None), (CLIPTextModelWithProjection(second), None)], True)
    return Prior(AutoencoderKL(**_SDXL_VAE), UNet2DConditionModel(**_SDXL_UNET), text, DDPMScheduler()).freeze()


def build_sd35() -> Prior:
    """Stable Diffusion 3.5 medium without T5, as `build_sd21`: 13 GB in float32."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from megasr.semantics.text import SD3TextEncoder

    clips = [(CLIPTextModelWithProjection(CLIPTextConfig(**sizes)), None) for sizes in _CLIP_TEXTS]
    transformer = SD3Transformer2DModel(**_SD35_TRANSFORMER)
    text = SD3TextEncoder(clips, None, width=4096)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Prior(AutoencoderKL(**_SD35_VAE), transformer, text, scheduler).freeze()


# Priors whose sizes are known without their files.
KNOWN_PRIORS: dict[str, Callable[[], Prior]] = {
    "sd21-base": build_sd21, "sd21-768v": partial(build_sd21, "v_prediction", 96), "sd-turbo": build_sd21,
    "sdxl-base": build_sdxl, "sd35-medium": build_sd35,
}  # fmt: skip


def build_on_meta(name: str) -> Prior:
    """One of KNOWN_PRIORS without weights, on the meta device: sizes only."""
    with torch.device("meta"):
        return KNOWN_PRIORS[name]()


def parameter_table(prior: Prior, config: AdapterConfig) -> list[PartSize]:
    """Build the adapter on the meta device, where the prior goes too, and count each part; the last row is the sum."""
    with torch.device("meta"):
        network = MegaSRNetwork(prior.to("meta"), config)
    denoiser = "MMDiT" if isinstance(network.unet, MegaSRMMDiT) else "U-Net"
    rows = [
        PartSize("VAE", *_count(prior.vae)),
        PartSize("text encoder", *_count(prior.text_encoder)),
        PartSize(denoiser, *_count(prior.unet)),
        *_site_rows(denoiser, network.unet.sites),
    ]
    for name, part in ((f"{denoiser} LoRA", network.unet.model), ("VAE encoder LoRA", network.vae)):
        if part is not None and (trained := _count(part)[0]):
            rows.append(PartSize(name, trained, 0))
    if network.connector is not None:
        rows.append(PartSize("CSM connector", *_count(network.connector)))
    if network.controlnet is not None:
        controlnet = network.controlnet.model
        encoder, _ = lq_encoder = _count(network.controlnet.lq_encoder)
        trained, frozen = _count(controlnet, {id(p) for p in prior.parameters()})
        rows += [PartSize("LQ encoder", *lq_encoder), PartSize("ControlNet", trained - encoder, frozen)]
        rows += _site_rows("ControlNet", network.controlnet.sites)
    return [*rows, PartSize("all", sum(r.trained for r in rows), sum(r.frozen for r in rows))]


def _site_rows(model: str, sites: nn.ModuleList) -> list[PartSize]:
    rows = []
    for name, label in (("csm", "CSM"), ("rca", "RCA"), ("msfm", "MSFM"), ("lq_stream", "LQ stream")):
        parts = nn.ModuleList(part for site in sites if (part := getattr(site, name)) is not None)
        if parts:
            rows.append(PartSize(f"{model} {label}", *_count(parts), len(parts)))
    return rows


def _count(module: nn.Module, counted: Container[int] = ()) -> tuple[int, int]:
    """(trained, frozen) parameters, without those whose ids are `counted` already."""
    parameters = [p for p in module.parameters() if id(p) not in counted]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained, sum(p.numel() for p in parameters) - trained
