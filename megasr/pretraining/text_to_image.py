"""Training of an embedded prior's denoiser: a U-Net as in SD 2.1, or an MMDiT as in SD 3.5."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from megasr.batch import SRBatch
from megasr.diffusion import stratified_fractions
from megasr.errors import MegaSRError, UsageError
from megasr.files import identify_folder
from megasr.pretraining.module import PretrainingModule, text_of
from megasr.prior import Prior, load_autoencoder, save_prior
from megasr.rng import keyed_normal, torch_generator
from megasr.semantics.text import OpenClipTextEncoder
from megasr.tracking import first_line

# SD 2.1's.
NOISE_SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
}
MOST_POSITIONS = 64  # tokens on a side of an image that an MMDiT has positions for; its pipeline tiles larger ones


def build_mmdit(latent_channels: int, width: int, heads: int, layers: int, patch_size: int, text_width: int) -> Any:
    """A diffusers SD3Transformer2DModel whose blocks begin as the identity (2212.09748, section 3.2: adaLN-Zero)."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=patch_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=layers,
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        caption_projection_dim=width,
        pooled_projection_dim=text_width,
        pos_embed_max_size=MOST_POSITIONS,
        qk_norm="rms_norm",
    )
    modulations = [norm.linear for block in model.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for layer in (*modulations, model.norm_out.linear, model.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def build_unet(
    latent_channels: int, channels: tuple[int, ...], heads: tuple[int, ...], layers: int, text_width: int
) -> Any:
    """A diffusers UNet2DConditionModel of SD 2.1's layout, with cross-attention at every resolution."""
    from diffusers import UNet2DConditionModel

    levels = len(channels)
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=layers,
        cross_attention_dim=text_width,
        attention_head_dim=heads,
        norm_num_groups=16,
        use_linear_projection=True,
    )


class TextToImageModule(PretrainingModule):
    """Train a denoiser; the autoencoder and the text tower are frozen, as in Stable Diffusion.

    Args:
        vae: folder of the trained autoencoder.
        clip: folder of the trained CLIP, whose text tower conditions the denoiser.
        text_dropout: share of samples whose text is replaced by "" for classifier-free guidance.
        init: folder of a trained denoiser of the same sizes to start from; None starts from random weights.
        compile: train through torch.compile, which takes minutes to start and a C++ compiler on a CPU.
        settings: see PretrainingModule.

    Raises:
        MegaSRError: a folder does not hold what it should.
    """

    pooled = False  # the denoiser reads the text as a whole beside its tokens

    def __init__(
        self,
        vae: str,
        clip: str,
        text_dropout: float = 0.1,
        init: str | None = None,
        compile: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.vae = Path(vae)
        if not (Path(vae) / "config.json").is_file():
            raise MegaSRError(f"model.vae {vae}: there is none; its recipe has to run first (make prior)")
        autoencoder, text = load_autoencoder(Path(vae)), OpenClipTextEncoder.from_clip(clip, self.pooled)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model, scheduler = self.build(autoencoder.config.latent_channels, text.width)
        if init is not None:
            try:
                model.load_state_dict(type(model).from_pretrained(init).state_dict())
            except (OSError, ValueError, RuntimeError) as error:
                raise MegaSRError(
                    f"model.init {init} is no {type(model).__name__} of these sizes: {first_line(error)}"
                ) from error
        self.prior = Prior(autoencoder, model, text, scheduler)
        self.prior.requires_grad_(False).unet.requires_grad_(True)
        self.prior.to(memory_format=torch.channels_last)
        self.text_dropout = text_dropout
        # Not in place: parameters keep their names, and validation, which has other sizes, stays eager.
        self._predict = torch.compile(self._predict_eagerly, dynamic=False) if compile else self._predict_eagerly

    def build(self, latent_channels: int, text_width: int) -> tuple[nn.Module, Any]:
        """The denoiser with random weights, and its scheduler (both of diffusers)."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Check that LatentDataModule's latents are of this autoencoder.

        Raises:
            UsageError: they are of another one.
        """
        encoder, own = getattr(self.trainer.datamodule, "vae", None), identify_folder(self.vae)  # type: ignore[attr-defined]
        if encoder is not None and encoder != own:
            raise UsageError(f"data.folder was encoded by the autoencoder {encoder}, model.vae is {own}: encode again")

    def training_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        """Squared error of v or of the velocity, at timesteps that are stratified over the batch."""
        count, draw = len(batch["keys"]), partial(torch_generator, self.seed)
        place = self.global_step, self.global_rank
        dropped = (torch.rand(count, generator=draw("text_dropout", *place)) < self.text_dropout).tolist()
        texts = ["" if drop else text for drop, text in zip(dropped, text_of(batch), strict=True)]
        # Stratified timesteps halve the variance of the loss.
        fractions = (torch.arange(count) + torch.rand((), generator=draw("timesteps", *place))) / count
        schedule, z0 = self.prior.schedule, self._latents(batch)
        timesteps = schedule.draw(fractions, schedule.num_timesteps).to(self.device)
        # On the device, which need not wait for the CPU to draw and send it.
        generator = draw("prior_noise", *place, device=self.device)
        noise = torch.randn(z0.shape, generator=generator, device=self.device)
        loss = self._losses(self._predict, z0, noise, texts, timesteps).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: SRBatch, batch_index: int) -> None:
        """Loss at eight fixed timesteps with noise keyed by the image, with and without the text."""
        schedule, keys, z0 = self.prior.schedule, batch["keys"], self._latents(batch)
        fixed = schedule.draw(stratified_fractions(8), schedule.num_timesteps)
        noise = keyed_normal(self.seed, keys, z0.shape[1:], "validation")
        for name, texts in (("val/loss", text_of(batch)), ("val/loss_without_text", [""] * len(batch["keys"]))):
            losses = [
                self._losses(self._predict_eagerly, z0, noise, texts, t.expand(len(texts)).to(self.device))
                for t in fixed
            ]
            self.log(name, torch.stack(losses).mean(), prog_bar=True, batch_size=len(texts), sync_dist=True)

    @torch.no_grad()
    def _latents(self, batch: SRBatch) -> torch.Tensor:
        """The batch's latents (LatentDataModule), else those of hq."""
        z0 = batch["latents"] if "latents" in batch else self.prior.encode(batch["hq"])
        return z0.contiguous(memory_format=torch.channels_last)

    def _predict_eagerly(self, z_t: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.prior.predict(z_t, timesteps, text)

    def _losses(
        self,
        predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        z0: torch.Tensor,
        noise: torch.Tensor,
        texts: list[str],
        timesteps: torch.Tensor,
    ) -> torch.Tensor:
        with torch.no_grad():
            text = self.prior.text_encoder(texts)
        noise = noise.to(z0)
        z_t = self.prior.schedule.add_noise(z0, noise, timesteps)
        target = self.prior.schedule.target(z0, noise, timesteps)
        return F.mse_loss(predict(z_t, timesteps, text).float(), target, reduction="none").mean((1, 2, 3))

    def export(self, folder: Path) -> None:
        """Write the whole prior as a diffusers folder."""
        save_prior(self.prior, folder)


class UNetModule(TextToImageModule):
    """Train a U-Net of SD 2.1's layout on v (2202.00512) with SD 2.1's noise.

    Args:
        vae: see TextToImageModule.
        clip: see TextToImageModule.
        channels: of the levels.
        heads: attention heads of the levels.
        layers: residual blocks per level.
        settings: see TextToImageModule.
    """

    def __init__(
        self,
        vae: str,
        clip: str,
        channels: tuple[int, ...] = (64, 64, 112),
        heads: tuple[int, ...] = (2, 2, 4),
        layers: int = 1,
        **settings: Any,
    ) -> None:
        self.sizes: dict[str, Any] = {"channels": tuple(channels), "heads": tuple(heads), "layers": layers}
        super().__init__(vae, clip, **settings)
        self.save_hyperparameters()

    def build(self, latent_channels: int, text_width: int) -> tuple[nn.Module, Any]:
        from diffusers import DDPMScheduler

        unet = build_unet(latent_channels, text_width=text_width, **self.sizes)
        return unet, DDPMScheduler.from_config(NOISE_SCHEDULE)


class MMDiTModule(TextToImageModule):
    """Train an MMDiT of SD 3.5's layout on the velocity of a rectified flow (2403.03206).

    Args:
        vae: see TextToImageModule.
        clip: see TextToImageModule.
        width: of the tokens of image and text.
        heads: attention heads.
        layers: blocks.
        patch_size: latent pixels on a side of a token.
        shift: of the noise (2403.03206, eq. 23); 1 is none, SD 3 has 3 for images of 1024 px.
        settings: see TextToImageModule.
    """

    pooled = True

    def __init__(
        self,
        vae: str,
        clip: str,
        width: int = 160,
        heads: int = 5,
        layers: int = 6,
        patch_size: int = 1,
        shift: float = 1.0,
        **settings: Any,
    ) -> None:
        self.sizes: dict[str, Any] = {"width": width, "heads": heads, "layers": layers, "patch_size": patch_size}
        self.shift = shift
        super().__init__(vae, clip, **settings)
        self.save_hyperparameters()

    def build(self, latent_channels: int, text_width: int) -> tuple[nn.Module, Any]:
        from diffusers import FlowMatchEulerDiscreteScheduler

        mmdit = build_mmdit(latent_channels, text_width=text_width, **self.sizes)
        return mmdit, FlowMatchEulerDiscreteScheduler(shift=self.shift)
