"""Small frozen networks for losses, in the place of those whose weights are not shipped."""

from __future__ import annotations

from unittest import mock

import torch
from torch import nn

from megasr.networks.config import AdapterConfig
from megasr.rng import seeded_initialisation
from megasr.system import FrozenParts
from megasr.training.config import CriticConfig, ObjectiveConfig, SamplerConfig
from megasr.training.module import MegaSRModule
from tests.helpers.training import make_module

ONE_STEP = SamplerConfig(num_steps=1, start="noiseless_lq", start_fraction=0.25)


class RandomFeatures(nn.Module):
    """Two levels of random convolutions."""

    channels = (8, 16)

    def __init__(self, name: str) -> None:
        super().__init__()
        with seeded_initialisation(0, name):
            self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        level = self.first(image).relu()
        return [level, self.second(level)]


class RandomDistance(nn.Module):
    """Squared distance of their features."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.features = RandomFeatures(name)

    def forward(self, sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
        return self.compare(self.features(sr), self.features(hq))

    def compare(self, sr: list[torch.Tensor], hq: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([(a - b).square().mean((1, 2, 3)) for a, b in zip(sr, hq, strict=True)]).sum(0)


def load_random(self: FrozenParts, name: str, weights_dir: str | None) -> nn.Module:
    """In the place of FrozenParts.perceptual."""
    kind = RandomDistance if name in ("lpips_alex", "lpips_vgg", "dists") else RandomFeatures
    return kind(name).requires_grad_(False)


def one_step(terms: dict[str, float], lora: int | None = None, **changes: object) -> MegaSRModule:
    """A module that is trained in one step by these terms."""
    objective = {"kind": "one_step", "terms": terms, **changes.pop("objective", {})}  # type: ignore[arg-type]
    if any(terms.get(name) for name in ("csd", "vsd", "gan")):
        learns = any(terms.get(name) for name in ("vsd", "gan"))
        objective.setdefault("critic", CriticConfig(learning_rate=1e-3) if learns else CriticConfig())
    adapter = AdapterConfig(guidance=("canny",), saft_width=8, prior_lora=lora)
    with mock.patch.object(FrozenParts, "perceptual", load_random):
        return make_module(
            **{"adapter": adapter, "objective": ObjectiveConfig(**objective), "sampler": ONE_STEP, **changes}
        )
