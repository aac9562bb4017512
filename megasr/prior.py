"""The frozen text-to-image prior: VAE, denoiser, text encoder and noise schedule, from a diffusers folder.

Latents z are (B, C, H / f, W / f), scaled to about unit variance (f: the VAE's down-sampling, 8 for SD 2.1).
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megasr.configs import read_config
from megasr.diffusion import DDPM, Flow, Schedule
from megasr.errors import MegaSRError
from megasr.files import identify_folder
from megasr.images import to_signed
from megasr.provenance import digest_samples, weight_samples
from megasr.semantics.text import Text, TextEncoder, TextStates, load_text_encoder
from megasr.semantics.text_states import load_stored_text
from megasr.weights.local import (
    denoiser_folder,
    downsampling,
    find_prior,
    is_sdxl,
    native_px,
    size_multiple,
    text_library,
)

# Denoisers and schedulers by their classes in diffusers, as they go together.
DENOISERS = {"UNet2DConditionModel": "DDPMScheduler", "SD3Transformer2DModel": "FlowMatchEulerDiscreteScheduler"}
_FLOW = ("num_train_timesteps", "shift", "use_dynamic_shifting")
_DDPM = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "prediction_type")
AUTOENCODERS = ("AutoencoderKL", "AutoencoderDC")


class Prior(nn.Module):
    """A latent diffusion model whose weights never change while an adapter is trained.

    Args:
        vae: AutoencoderKL or AutoencoderDC.
        unet: the denoiser, one of DENOISERS. An MMDiT has the name of a U-Net too: names of weights are in fingerprints
            and checkpoints.
        text_encoder: embeds prompts as the denoiser reads them.
        scheduler: diffusers', of which the noise schedule is taken.
    """

    def __init__(self, vae: nn.Module, unet: nn.Module, text_encoder: TextEncoder, scheduler: Any) -> None:
        super().__init__()
        self.vae = vae
        self.unet = unet
        self.text_encoder = text_encoder
        self.scheduler = scheduler
        flow = type(scheduler).__name__ == DENOISERS["SD3Transformer2DModel"]
        self.schedule: Schedule = Flow(scheduler) if flow else DDPM(scheduler)
        if hasattr(unet, "pos_embed"):  # nearly a GB in SD 3.5: copies share and cast parameters, buffers they do not
            positions = unet.pos_embed.pos_embed
            del unet.pos_embed.pos_embed
            unet.pos_embed.pos_embed = nn.Parameter(positions, requires_grad=False)

    @property
    def downsampling(self) -> int:
        """f: image pixels per latent pixel and axis."""
        return downsampling(self.vae.config)

    @property
    def size_multiple(self) -> int:
        """hq height and width must be multiples of this many pixels: VAE down-sampling times the U-Net's."""
        return size_multiple(self.vae.config, self.unet.config)

    @property
    def native_px(self) -> int | None:
        """Height and width of the images that the prior was trained on; None when its configuration does not say."""
        return native_px(self.vae.config, self.unet.config)

    def predict(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, text: Text, denoiser: nn.Module | None = None
    ) -> torch.Tensor:
        """Prediction (B, C, h, w) for z_t at `timesteps` (B,), by the prior or a `denoiser` derived from its own."""
        model, times = self.unet if denoiser is None else denoiser, self.schedule.model_timesteps(timesteps)
        if not isinstance(text, TextStates):
            return model(z_t, times, text).sample
        if isinstance(self.schedule, Flow):
            return model(z_t, text.states, pooled_projections=text.pooled, timestep=times).sample
        added = {"text_embeds": text.pooled, "time_ids": time_ids(z_t, self.downsampling)}
        return model(z_t, times, text.states, added_cond_kwargs=added).sample

    def to_z0(self, prediction: torch.Tensor, z_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The estimate of the clean latent."""
        return self.schedule.split(prediction, z_t, timesteps)[0]

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> z; see encode_images."""
        return encode_images(self.vae, image)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Z -> (B, 3, H, W) float32 in [0, 1]."""
        return self.decode_unclipped(z).clamp(0, 1)

    def decode_unclipped(self, z: torch.Tensor) -> torch.Tensor:
        """Z -> (B, 3, H, W) float32 around [0, 1]: a loss sees no gradient where a number was clipped."""
        z = z.to(self.vae.dtype) / self.vae.config.scaling_factor
        shift = self.vae.config.get("shift_factor")
        image = self.vae.decode(z if shift is None else z + shift).sample
        return (image.float() + 1) / 2

    def freeze(self) -> Prior:
        """No gradients, evaluation mode. Returns itself."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Prior:
        """A frozen prior stays in evaluation mode whatever Lightning asks for."""
        frozen = not any(p.requires_grad for p in self.parameters())
        return super().train(mode and not frozen)

    def fingerprint(self) -> str:
        """12 hex digits that identify the weights (as float16) and the noise schedule, whatever the file format.

        An fp32 checkpoint and its fp16 variant are the same prior. Take it before the prior is cast to another dtype.
        """
        schedule = [self.scheduler.config.get(key) for key in (_FLOW if isinstance(self.schedule, Flow) else _DDPM)]
        absent = {f"text_encoder.{name}": sample for name, sample in self.text_encoder.absent_weights.items()}
        return digest_samples({**weight_samples(self), **absent}, json.dumps(schedule).encode())[:12]


def time_ids(z: torch.Tensor, downsampling: int) -> torch.Tensor:
    """SDXL's size conditions (2307.01952, section 2.2) of latents (B, C, h, w) -> (B, 6) float32.

    Height and width in px before the crop, the crop's top and left, and its height and width; every image or tile
    counts as uncropped.
    """
    height, width = (float(side * downsampling) for side in z.shape[-2:])
    return torch.tensor([height, width, 0.0, 0.0, height, width], device=z.device).expand(len(z), -1)


def encode_images(vae: Any, image: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> z (the mode of the posterior: evaluation must not depend on a draw)."""
    encoded = vae.encode(to_signed(image).to(vae.dtype))
    z: torch.Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    shift = vae.config.get("shift_factor")
    return (z if shift is None else z - shift) * vae.config.scaling_factor


def identify_prior(source: str) -> str:
    """12 hex digits over the beginning of every file of a prior: cheap, and unlike `fingerprint` without loading it."""
    return identify_folder(find_prior(source))


def load_prior(source: str = "tiny", text_states: str | None = None) -> Prior:
    """Load and freeze a prior in float32.

    Args:
        source: `tiny`, a diffusers folder, `sd21-base` or a hub id in the local cache.
        text_states: folder of `megasr embed` whose states replace the text encoder, which is not loaded; the prior has
            the same fingerprint. None loads the text encoder.

    Raises:
        UsageError: the text states were made by another text encoder.
        MegaSRError: the prior, or one of its parts, is missing or cannot be read.
    """
    import diffusers

    folder = find_prior(source)
    part = denoiser_folder(folder)
    needed = ["model_index.json", "vae", part, "text_encoder", "scheduler"]
    if text_library(folder) != "open_clip" and (part == "transformer" or is_sdxl(folder)):
        needed += ["tokenizer", "text_encoder_2", "tokenizer_2"]
        needed += ["tokenizer_3"] * (folder / "text_encoder_3").exists()
    absent = [name for name in needed if not (folder / name).exists()]
    if absent:
        absent = ["unet or transformer" if name == "unet" else name for name in absent]
        hint = "; SDXL's refiner is no prior, use its base" if is_sdxl(folder) and "text_encoder" in absent else ""
        raise MegaSRError(f"prior {source!r}: {folder} is not a diffusers folder, it lacks {', '.join(absent)}{hint}")
    stored = None if text_states is None else load_stored_text(text_states, folder, source)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    try:
        # The libraries draw initial weights before they load the real ones.
        with torch.random.fork_rng(devices=[]):
            name = denoiser_class(read_config(folder / part / "config.json"))
            denoiser = getattr(diffusers, name)
            return Prior(
                vae=load_autoencoder(folder / "vae"),
                unet=denoiser.from_pretrained(folder, subfolder=part, torch_dtype=torch.float32),
                text_encoder=load_text_encoder(folder) if stored is None else stored,
                scheduler=getattr(diffusers, DENOISERS[name]).from_pretrained(folder, subfolder="scheduler"),
            ).freeze()
    except pickle.UnpicklingError as error:  # torch advises to read it unsafely
        reason = "a file of weights holds more than tensors; only tensors are read, as other objects could run code"
        raise MegaSRError(f"prior {source!r} in {folder} cannot be read: {reason}") from error
    except Exception as error:  # every library has errors of its own for a broken or hostile file
        reason = str(error) or type(error).__name__
        raise MegaSRError(f"prior {source!r} in {folder} cannot be read: {reason}") from error


def load_autoencoder(folder: Path) -> Any:
    """The autoencoder in a folder, of the class that its config names: AutoencoderKL (SD) or AutoencoderDC (DC-AE).

    Raises:
        ValueError: it is of another class.
        OSError: it cannot be read.
    """
    import diffusers

    name = autoencoder_class(read_config(folder / "config.json"))
    return getattr(diffusers, name).from_pretrained(folder, torch_dtype=torch.float32)


def denoiser_class(config: Mapping[str, Any]) -> str:
    """The name of the class in diffusers that the config of a denoiser asks for.

    Raises:
        ValueError: it is none of DENOISERS.
    """
    return _known_class("denoiser", config, tuple(DENOISERS))


def autoencoder_class(config: Mapping[str, Any]) -> str:
    """The name of the class in diffusers that the config of an autoencoder asks for.

    Raises:
        ValueError: it is none of AUTOENCODERS.
    """
    return _known_class("autoencoder", config, AUTOENCODERS)


def _known_class(part: str, config: Mapping[str, Any], known: tuple[str, ...]) -> str:
    name = config.get("_class_name", known[0])
    if name not in known:
        raise ValueError(f"the {part} is a {name}, but must be one of {', '.join(known)}")
    return str(name)


def save_part(model: Any, folder: Path) -> None:
    """Write a diffusers model: its config and fp16 safetensors."""
    import copy

    copy.deepcopy(model).half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)  # a path of this machine
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_prior(prior: Prior, folder: Path) -> None:
    """Write a prior with an open_clip text encoder as a diffusers folder with fp16 safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    name = type(prior.unet).__name__
    part = "unet" if name == "UNet2DConditionModel" else "transformer"
    save_part(prior.vae, folder / "vae")
    save_part(prior.unet, folder / part)
    prior.text_encoder.save(folder / "text_encoder")
    prior.scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline" if part == "unet" else "StableDiffusion3Pipeline",
        "vae": ["diffusers", type(prior.vae).__name__],
        part: ["diffusers", name],
        "text_encoder": ["open_clip", "TextTransformer"],
        "tokenizer": ["open_clip", "SimpleTokenizer"],
        "scheduler": ["diffusers", DENOISERS[name]],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
