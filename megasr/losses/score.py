"""Score distillation: the frozen prior judges a restoration by how it would denoise it.

The restored latent is noised; the prior's estimate of the clean latent, with classifier-free guidance, says where a
likely image lies, and the estimate of a second network what the restoration looks like now. The restoration moves along
their difference (VSD, 2305.16213; in one-step restoration OSEDiff, 2406.08177). The second network is the prior without
words in CSD (2310.19415, PiSA-SR), and in VSD a LoRA on the prior that learns to denoise restorations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from megasr.diffusion import diffusion_loss, guided
from megasr.losses.terms import Estimate, TermParts, mean
from megasr.networks.lora import add_lora, sharing_copy
from megasr.prior import Prior
from megasr.rng import keyed_normal, keyed_uniform
from megasr.semantics.text import Text


class CSD(nn.Module):
    """Classifier score distillation: an Estimate to (B,), whose gradient reaches z0. Needs prompts, and no weights.

    Args:
        parts: see TermParts.
    """

    draws = True

    def __init__(self, parts: TermParts) -> None:
        super().__init__()
        self._priors = [parts.prior]  # not as a submodule: it is the system's
        self._scale, self._interval = parts.critic.guidance_scale, parts.critic.timesteps

    def forward(self, estimate: Estimate) -> torch.Tensor:
        """Mean square of the step towards the prior's estimate; its gradient is that step (OSEDiff, eq. 7)."""
        z0 = estimate.z0
        with _judging(z0):
            noise, timesteps = self._draw(estimate, "score")
            z_t = self._prior.schedule.add_noise(z0.detach(), noise, timesteps)
            with_text = self._predict(z_t, timesteps, estimate.text)
            without = self._predict(z_t, timesteps, estimate.no_text)
            likely = self._prior.to_z0(guided(with_text, without, self._scale), z_t, timesteps)
            now = self._prior.to_z0(self._second(z_t, timesteps, estimate, without), z_t, timesteps)
            distance = mean((z0 - likely).abs()).clamp(min=1e-6).view(-1, 1, 1, 1)
            target = z0 - (now - likely) / distance
        return mean(F.mse_loss(z0, target, reduction="none"))

    def _second(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, estimate: Estimate, without_text: torch.Tensor
    ) -> torch.Tensor:
        """What is predicted for the restoration as it is now."""
        return without_text

    @property
    def _prior(self) -> Prior:
        return self._priors[0]

    def _predict(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, text: Text, critic: nn.Module | None = None
    ) -> torch.Tensor:
        return self._prior.predict(z_t, timesteps, text, critic).float()

    def _draw(self, estimate: Estimate, purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise and timesteps, keyed by image and step: they differ between processes."""
        z0, (low, high) = estimate.z0, self._interval
        key = (f"{purpose}/{type(self).__name__}", estimate.purpose)
        fractions = low + (high - low) * keyed_uniform(estimate.seed, estimate.keys, *key, "timestep")
        timesteps = (fractions * self._prior.schedule.num_timesteps).long().to(z0.device)
        return keyed_normal(estimate.seed, estimate.keys, z0.shape[1:], *key).to(z0), timesteps


class VSD(CSD):
    """Variational score distillation: as CSD, with a critic that learns to denoise restorations.

    Args:
        parts: see TermParts.
    """

    def __init__(self, parts: TermParts) -> None:
        super().__init__(parts)
        self.critic = add_lora(sharing_copy(parts.prior.unet), parts.critic.lora_rank, parts.seed, "vsd")

    def _second(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, estimate: Estimate, without_text: torch.Tensor
    ) -> torch.Tensor:
        return self._predict(z_t, timesteps, estimate.text, self.critic)

    def critic_loss(self, estimate: Estimate) -> torch.Tensor:
        """The diffusion loss of the critic on the restoration, (B,)."""
        noise, timesteps = self._draw(estimate, "critic")
        z0 = estimate.z0.detach()
        return diffusion_loss(
            lambda z_t, t: self._predict(z_t, t, estimate.text, self.critic),
            self._prior.schedule, z0, noise, timesteps,
        )  # fmt: skip


@contextmanager
def _judging(z: torch.Tensor) -> Iterator[None]:
    """No gradients, and no weights cast here that autocast keeps.

    Before pytorch#165068, newer than the oldest torch that is supported, they had no graph, and a critic that used them
    afterwards learnt nothing. With newer versions this changes nothing.
    """
    kind = z.device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield
