"""Training of the embedded prior's autoencoder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.images import from_signed, to_signed
from megasr.losses.perceptual import LPIPS
from megasr.pretraining.module import PretrainingModule
from megasr.prior import load_autoencoder, save_part
from megasr.rng import torch_generator
from megasr.tracking import first_line

_PROBE = 0.2  # standard deviations by which a latent channel is changed, to see what it does
_LEVEL = 4.0  # a constant channel value that keeps the last norm, and so the decoder's path, nearly linear at first


def build_autoencoder(
    latent_channels: int, width: int, encoder_layers: tuple[int, ...], decoder_layers: tuple[int, ...]
) -> Any:
    """A diffusers AutoencoderDC with zero-initialised residual blocks, which leaves its linear paths.

    Args as of AutoencoderModule; width must be more than 24.
    """
    from diffusers import AutoencoderDC

    levels = len(encoder_layers)
    vae = AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(12, *(12 * 4**level for level in range(levels))),
        decoder_block_out_channels=(width, *(width * 4**level for level in range(levels))),
        encoder_layers_per_block=(0, *encoder_layers),
        decoder_layers_per_block=(0, *decoder_layers),
        encoder_qkv_multiscales=((),) * (levels + 1),
        decoder_qkv_multiscales=((),) * (levels + 1),
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
        decoder_conv_act_fn="silu",
    )
    for module in vae.modules():
        if type(module).__name__ == "ResBlock":
            nn.init.zeros_(module.norm.weight)
            nn.init.zeros_(module.norm.bias)
    return vae


@torch.no_grad()
def start_from_components(vae: Any, images: torch.Tensor, whitening: float) -> None:
    """Set the linear paths to the principal components of the images' f x f patches.

    The decoder carries every value v as the pair (v, -v), because silu(v) - silu(-v) = v.

    Args:
        vae: of build_autoencoder.
        images: (B, 3, H, W) in [-1, 1].
        whitening: components are divided by their standard deviation to this power: 1 weighs all of them alike.
    """
    levels = len(vae.config.encoder_block_out_channels) - 1
    patches, values = images, 3 * 4**levels  # of a patch: f x f pixels of 3 channels
    for _ in range(levels):
        patches = F.pixel_unshuffle(patches, 2)
    patches = patches.movedim(1, -1).reshape(-1, values).double()
    mean = patches.mean(0)
    variance, components = torch.linalg.eigh(torch.cov(patches.T))
    channels = vae.config.latent_channels
    variance, components = variance.flip(0)[:channels], components.flip(1)[:, :channels]
    scale = variance.sqrt() ** whitening
    encoder, decoder = vae.encoder, vae.decoder
    _set_centre(encoder.conv_in.conv, torch.eye(3))
    _set_centre(encoder.conv_out, components.T / scale[:, None], -(components.T @ mean) / scale)
    rows, bias = torch.zeros(decoder.conv_in.out_channels, channels), torch.zeros(decoder.conv_in.out_channels)
    rows[:values], bias[:values] = components * scale[None], mean
    rows[values : 2 * values], bias[values : 2 * values] = -components * scale[None], -mean
    _set_centre(decoder.conv_in, rows, bias)
    for level in range(1, levels):  # only the shortcuts of the down- and upsampling work at first
        for conv in (encoder.down_blocks[level][-1].conv, decoder.up_blocks[level][0].conv):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
    # At half size only: the gradient of convolutions that read the level is as large as it.
    width = decoder.conv_out.conv.in_channels
    decoder.up_blocks[1][0].conv.bias[24 * 4 :] = _LEVEL
    nn.init.constant_(decoder.norm_out.weight, _LEVEL * ((width - 24) / width) ** 0.5)
    nn.init.zeros_(decoder.norm_out.bias)
    _set_centre(decoder.conv_out.conv, torch.cat([torch.eye(12), -torch.eye(12), torch.zeros(12, width - 24)], 1))


@torch.no_grad()
def standardise_latents(vae: Any, images: torch.Tensor) -> None:
    """Scale every latent channel of (B, 3, H, W) images in [-1, 1] to unit variance, and the decoder inversely.

    With unit variance, v (2202.00512) of Gaussian data does not correlate with z_t: the U-Net has only structure to
    learn. Otherwise it first learns to pass z_t through.
    """
    _scale_latents(vae, 1 / vae.encode(images).latent.std((0, 2, 3)))


@torch.no_grad()
def weigh_latents(vae: Any, images: torch.Tensor, power: float) -> None:
    """Scale latent channels by what the decoder makes of them, and the decoder inversely.

    Of many channels of unit variance most are detail that looks like noise, and noise hides all of them at the same
    timestep. Weighed, what the picture shows at large is hidden last, as in pixels: a diffusion model draws it first.

    Args:
        vae: of build_autoencoder.
        images: (B, 3, H, W) in [-1, 1].
        power: a channel's standard deviation becomes proportional to the change of the picture by a deviation of the
            channel, to this power. The variance of all channels together becomes 1.
    """
    standardise_latents(vae, images)
    z = vae.encode(images).latent
    before, change = vae.decode(z).sample, torch.zeros(z.shape[1], device=z.device)
    for channel in range(z.shape[1]):
        noise = torch.zeros_like(z)
        generator = torch_generator(0, "weigh_latents", channel)
        noise[:, channel] = _PROBE * torch.randn(z[:, channel].shape, generator=generator).to(z)
        change[channel] = (vae.decode(z + noise).sample - before).square().mean().sqrt()
    weight = change**power
    _scale_latents(vae, weight / weight.square().mean().sqrt())


def _scale_latents(vae: Any, factor: torch.Tensor) -> None:
    vae.encoder.conv_out.weight *= factor[:, None, None, None]
    vae.encoder.conv_out.bias *= factor
    vae.decoder.conv_in.weight /= factor[None, :, None, None]


def _set_centre(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    nn.init.zeros_(conv.weight)
    conv.weight[:, :, 1, 1] = weight.to(conv.weight)
    assert conv.bias is not None
    conv.bias.copy_(torch.zeros_like(conv.bias) if bias is None else bias)


class AutoencoderModule(PretrainingModule):
    """Train the autoencoder of a small prior.

    Args:
        latent_channels: C of the latents (C, H / f, W / f).
        width: channels of the decoder at half size; four times as many at every smaller size.
        encoder_layers: residual blocks of the encoder at half size, quarter size, ...; f = 2^(their number).
        decoder_layers: the same of the decoder.
        whitening: see start_from_components.
        latent_noise: standard deviation of the training noise on the latents, relative to theirs, so that the decoder
            tolerates a diffusion model's errors.
        gradient_weight: weight of the squared error of image gradients, for sharp edges.
        lpips_weight: weight of LPIPS on AlexNet; 0 needs none of its weights.
        latent_power: see weigh_latents; 0 gives every channel of the exported autoencoder unit variance.
        weights_dir: folder of LPIPS's weights; None looks where pyiqa and torch keep them.
        init: folder of an exported autoencoder of the same sizes to start from; None starts from components.
        lock_encoder: train the decoder alone, with init: latents, and what was trained on them, stay valid.
        settings: see PretrainingModule.

    Raises:
        UsageError: encoder and decoder have different f, or the encoder is locked as it was drawn.
        MegaSRError: LPIPS is asked for and its weights are not on this machine.
    """

    def __init__(
        self,
        latent_channels: int = 24,
        width: int = 32,
        encoder_layers: tuple[int, ...] = (1, 2, 2),
        decoder_layers: tuple[int, ...] = (2, 2, 0),
        whitening: float = 0.5,
        latent_noise: float = 0.03,
        gradient_weight: float = 0.5,
        lpips_weight: float = 0.0,
        latent_power: float = 0.0,
        weights_dir: str | None = None,
        init: str | None = None,
        lock_encoder: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.save_hyperparameters()
        if len(encoder_layers) != len(decoder_layers):
            raise UsageError(f"model.encoder_layers {encoder_layers}, decoder_layers {decoder_layers}: make f the same")
        if lock_encoder and init is None:
            raise UsageError(
                "model.lock_encoder: the encoder is not trained yet; give model.init, a trained autoencoder"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.vae = build_autoencoder(latent_channels, width, tuple(encoder_layers), tuple(decoder_layers))
        self.goes_on = init is not None
        if init is not None:
            try:
                self.vae.load_state_dict(load_autoencoder(Path(init)).state_dict())
            except (OSError, ValueError, RuntimeError) as error:
                raise MegaSRError(f"model.init {init} is no autoencoder of these sizes: {first_line(error)}") from error
        self.vae.to(memory_format=torch.channels_last)
        self.vae.encoder.requires_grad_(not lock_encoder)
        self.lock_encoder = lock_encoder
        self.whitening, self.latent_noise, self.gradient_weight = whitening, latent_noise, gradient_weight
        self.lpips_weight, self.latent_power = lpips_weight, latent_power
        self.lpips = LPIPS(Path(weights_dir) if weights_dir else None) if lpips_weight else None

    def setup(self, stage: str) -> None:
        """Start from the components of training patches; a resumed checkpoint replaces them."""
        if stage == "fit" and not self.goes_on:
            start_from_components(self.vae, to_signed(self.samples(256)), self.whitening)

    def training_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        """Squared error of pixels and of their gradients, and LPIPS."""
        target = to_signed(batch["hq"]).contiguous(memory_format=torch.channels_last)
        z = self.vae.encode(target).latent
        generator = torch_generator(self.seed, "latent_noise", self.global_step, self.global_rank)
        noise = torch.randn(z.shape, generator=generator).to(z)
        image = self.vae.decode(z + self.latent_noise * z.detach().std() * noise).sample.float()
        error = F.mse_loss(image, target)
        self.log("train/psnr", -10 * torch.log10(error.detach() / 4), prog_bar=True)
        gradients = sum(F.mse_loss(image.diff(dim=axis), target.diff(dim=axis)) for axis in (-1, -2))
        loss = error + self.gradient_weight * gradients
        if self.lpips is not None:
            distance = self.lpips(from_signed(image), batch["hq"]).mean()
            self.log("train/lpips", distance.detach(), prog_bar=True)
            loss = loss + self.lpips_weight * distance
        self.log("train/loss", loss)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: SRBatch, batch_index: int) -> None:
        """PSNR in RGB, mean over images."""
        image = from_signed(self.vae.decode(self.vae.encode(to_signed(batch["hq"])).latent).sample).clamp(0, 1)
        psnr = -10 * torch.log10((image - batch["hq"]).square().mean((1, 2, 3)))
        self.log("val/psnr", psnr.mean(), prog_bar=True, batch_size=len(psnr), sync_dist=True)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write a diffusers folder, its latents scaled on training images (latent_power), locked ones as they are."""
        vae = copy.deepcopy(self.vae)
        if not self.lock_encoder:
            weigh_latents(vae, to_signed(self.samples(256)).to(self.device), self.latent_power)
        save_part(vae, folder)
