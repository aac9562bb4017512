"""Training a small prior from nothing: first the autoencoder, then the text-conditional U-Net with its text tower.

The tiny prior that the package ships was made by this module. It has the layout of SD 2.1 and fits a laptop:
128 px images, latents (8, 32, 32), cross-attention at three resolutions.
"""

from __future__ import annotations

from typing import Literal

import lightning
import torch
import torch.nn.functional as F

from megasr.batch import SRBatch
from megasr.diffusion.objective import add_noise, prediction_target
from megasr.images import from_signed, to_signed
from megasr.prior import Prior, load_prior
from megasr.rng import keyed_uniform, torch_generator
from megasr.semantics.text import OpenClipTextEncoder


def build_tiny_prior() -> Prior:
    """The tiny prior with random weights. Sizes were chosen by CPU seconds per step: see its model card."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    vae = AutoencoderKL(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=8,
        # All channels in one group: normalising three channels at a time erases their mean, that is the colour.
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=128,
    )
    # Start almost deterministic: with a log-variance of 0 the decoder would first see noise as large as the signal, and
    # a bias moves by about the learning rate per step.
    torch.nn.init.constant_(vae.quant_conv.bias[vae.config.latent_channels :], -6.0)
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 64, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=(1, 2, 3),
        norm_num_groups=16,
        use_linear_projection=True,
    )
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
    )
    return Prior(vae, unet, OpenClipTextEncoder(context_length=32, width=32, heads=2, layers=2), scheduler)


class PriorModule(lightning.LightningModule):
    """Train one stage of a tiny prior.

    Args:
        stage: `vae` trains the autoencoder, `unet` the U-Net and the text tower on the latents of a trained one.
        init: prior folder to start from; None builds the tiny prior with random weights.
        learning_rate: peak of AdamW's one-cycle schedule over the whole run.
        kl_weight: weight of the KL divergence per latent element against the squared error (stage vae).
        gradient_weight: weight of the squared error of image gradients, which keeps edges sharp (stage vae).
        text_dropout: share of samples whose text is replaced by "" for classifier-free guidance (stage unet).
        seed: of noise, timesteps and dropout.
    """

    def __init__(
        self,
        stage: Literal["vae", "unet"] = "vae",
        init: str | None = None,
        learning_rate: float = 2e-3,
        kl_weight: float = 1e-4,
        gradient_weight: float = 1.0,
        text_dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.prior = build_tiny_prior() if init is None else load_prior(init)
        self.trained = [self.prior.vae] if stage == "vae" else [self.prior.unet, self.prior.text_encoder]
        self.prior.requires_grad_(False)
        for part in self.trained:
            part.requires_grad_(True)
        self.prior.to(memory_format=torch.channels_last)

    def training_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        loss = self._vae_loss(batch) if self.hparams.stage == "vae" else self._unet_loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _vae_loss(self, batch: SRBatch) -> torch.Tensor:
        target = to_signed(batch["hq"]).contiguous(memory_format=torch.channels_last)
        posterior = self.prior.vae.encode(target).latent_dist
        generator = torch_generator(self.hparams.seed, "posterior", self.global_step, self.global_rank)
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(target)
        image = self.prior.vae.decode(z).sample
        self.log("train/psnr", -10 * torch.log10(F.mse_loss(from_signed(image), from_signed(target))), prog_bar=True)
        kl_per_element = posterior.kl().mean() / posterior.mean[0].numel()
        loss = F.mse_loss(image, target) + self.hparams.kl_weight * kl_per_element
        for axis in (-1, -2):
            loss = loss + self.hparams.gradient_weight * F.mse_loss(image.diff(dim=axis), target.diff(dim=axis))
        return loss

    def _unet_loss(self, batch: SRBatch) -> torch.Tensor:
        keys, seed = batch["keys"], self.hparams.seed
        with torch.no_grad():
            z0 = self.prior.encode(batch["hq"])
        dropped = keyed_uniform(seed, keys, "text_dropout", self.global_step) < self.hparams.text_dropout
        text = self.prior.text_encoder(["" if d else tag for d, tag in zip(dropped, batch["tags"], strict=True)])
        generator = torch_generator(seed, "prior_noise", self.global_step, self.global_rank)
        noise = torch.randn(z0.shape, generator=generator).to(z0)
        offset = torch.rand((), generator=generator)
        # Stratified over the batch: every step sees all noise levels, which halves the variance of the loss.
        fractions = (torch.arange(len(keys)) + offset) / len(keys)
        timesteps = (fractions * self.prior.scheduler.config.num_train_timesteps).long().to(z0.device)
        z_t = add_noise(self.prior.scheduler, z0, noise, timesteps)
        prediction = self.prior.unet(z_t, timesteps, text).sample
        return F.mse_loss(prediction, prediction_target(self.prior.scheduler, z0, noise, timesteps))

    @torch.no_grad()
    def measure_scaling_factor(self, images: torch.Tensor) -> float:
        """Set the VAE's scaling factor so that latents of `images` (B, 3, H, W) in [0, 1] have unit variance."""
        self.prior.vae.register_to_config(scaling_factor=1.0)
        factor = round(1 / float(self.prior.encode(images).std()), 4)
        self.prior.vae.register_to_config(scaling_factor=factor)
        return factor

    def configure_optimizers(self) -> dict:
        parameters = [p for part in self.trained for p in part.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=self.hparams.learning_rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams.learning_rate, total_steps=self.trainer.estimated_stepping_batches, pct_start=0.05
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
