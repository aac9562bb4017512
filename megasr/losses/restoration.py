"""The loss of one-step and few-step training: a weighted sum of terms, some of which begin later."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from megasr.errors import MegaSRError, UsageError
from megasr.losses.adversarial import GAN
from megasr.losses.score import CSD, VSD
from megasr.losses.structure import edge, frequency, latent_mean
from megasr.losses.terms import Compared, ComparedFeatures, Estimate, TermParts, l1, l2
from megasr.plugins import Registry
from megasr.prior import Prior
from megasr.training.config import CriticConfig, ObjectiveConfig

TERMS: Registry[Callable[[TermParts], nn.Module]] = Registry("term of objective.terms")
"""Term by name: TermParts to a module whose forward takes an Estimate and returns (B,).

`TERMS.register("mine", lambda parts: Compared(my_distance))` in a user's package adds one. A module with a
`critic_loss` (see Critic) learns beside the adapter; `draws = True` says that the term depends on draws and has no part
in the validation loss.
"""
# Literal names: the command line reads them without importing torch.
TERMS.register("l1", lambda parts: Compared(l1))
TERMS.register("l2", lambda parts: Compared(l2))
TERMS.register("latent", lambda parts: Compared(l2, latents=True))
TERMS.register("latent_mean", lambda parts: Compared(latent_mean, latents=True))
TERMS.register("edge", lambda parts: Compared(edge))
TERMS.register("frequency", lambda parts: Compared(frequency))
TERMS.register("lpips_alex", lambda parts: Compared(parts.network("lpips_alex")))
TERMS.register("lpips_vgg", lambda parts: ComparedFeatures(parts.network("lpips_vgg")))
TERMS.register("dists", lambda parts: Compared(parts.network("dists")))
TERMS.register("csd", CSD)
TERMS.register("vsd", VSD)
TERMS.register("gan", lambda parts: GAN(parts.network(parts.critic.features), parts.seed))


class RestorationLoss(nn.Module):
    """The weighted sum of the objective's terms, and what their critics minimise.

    Adapter and critics learn at the same time: the adapter's terms give critics no gradient, nor do critics' losses the
    adapter, so that one backward pass and one optimizer serve both. A critic learns from the first step, also before
    its term joins.

    Args:
        prior: the frozen prior.
        objective: weights and starts of the terms.
        network: see TermParts.
        seed: of initial weights.

    Raises:
        UsageError: a term is unknown.
        MegaSRError: weights of a term are missing; names all files.
    """

    def __init__(
        self, prior: Prior, objective: ObjectiveConfig, network: Callable[[str], nn.Module], seed: int
    ) -> None:
        super().__init__()
        weights = {name: weight for name, weight in (objective.terms or {}).items() if weight}
        parts = TermParts(prior, objective.critic or CriticConfig(), network, seed)
        builders = {name: TERMS[name] for name in weights}  # unknown names first
        terms, missing = {}, []
        for name, build in builders.items():
            try:
                terms[name] = build(parts)
            except UsageError:
                raise
            except MegaSRError as error:
                missing.append(f"objective.terms.{name}: {error}")
        if missing:
            raise MegaSRError("; ".join(missing))
        self.terms = nn.ModuleDict(terms)
        self._weights, self._starts = weights, dict(objective.term_starts or {})

    def forward(self, estimate: Estimate, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Losses (B,) to minimise in a training step, and their parts (B,) by name, unweighted."""
        parts: dict[str, torch.Tensor] = {}
        total = estimate.z0.new_zeros(len(estimate.keys))
        for name, term in self.terms.items():
            if step >= self._starts.get(name, 0):
                parts[name] = term(estimate)
                total = total + self._weights[name] * parts[name]
            if hasattr(term, "critic_loss"):
                parts[f"{name}_critic"] = term.critic_loss(estimate)
                total = total + parts[f"{name}_critic"]
        return total, {name: value.detach() for name, value in parts.items()}

    def validation(self, estimate: Estimate) -> torch.Tensor:
        """Losses (B,) of the terms that depend on no draw, all of them from the first step."""
        fixed = {name: term for name, term in self.terms.items() if not getattr(term, "draws", False)}
        losses = [self._weights[name] * term(estimate) for name, term in fixed.items()]
        return torch.stack(losses).sum(0) if losses else estimate.z0.new_zeros(len(estimate.keys))
