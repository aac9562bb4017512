"""A user's own MSFM, CSM and LQ encoder in the places of the project's."""

from __future__ import annotations

import pytest
import torch

from megasr.errors import UsageError
from megasr.networks.controlnet import LQ_ENCODERS, LQEncoder
from megasr.networks.csm import CSM, CSMS
from megasr.networks.msfm import MSFM, MSFMS
from megasr.networks.network import MegaSRNetwork
from megasr.plugins import Registry
from tests.helpers.networks import adapter, predict, random_inputs, random_prior, train_steps


class ShiftOnly(MSFM):
    """F' = F + sum(beta)."""

    def forward(self, features: torch.Tensor, modulation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return features + modulation[1]


class Negative(CSM):
    """Subtracts the visual branch."""

    def forward(self, *arguments: object) -> torch.Tensor:
        return -super().forward(*arguments)


class Pooled(torch.nn.Module):
    """Average pooling and one convolution."""

    def __init__(self, channels: int, downsampling: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AvgPool2d(downsampling), torch.nn.Conv2d(3, channels, 1))

    def forward(self, lq_up: torch.Tensor) -> torch.Tensor:
        return self.layers(lq_up)


OWN: dict[str, tuple[Registry, type[torch.nn.Module], type[torch.nn.Module]]] = {
    "msfm": (MSFMS, ShiftOnly, MSFM),
    "csm": (CSMS, Negative, CSM),
    "lq_encoder": (LQ_ENCODERS, Pooled, LQEncoder),
}


@pytest.mark.parametrize("field", OWN)
def test_a_registered_class_takes_the_place_and_is_trained(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, own, usual = OWN[field]
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    registry.register("mine", own)
    prior = random_prior()
    network = MegaSRNetwork(prior, adapter(guidance=("canny",), image=True, **{field: "mine"}))
    mine = [module for module in network.modules() if type(module) is own]
    assert mine
    assert not [module for module in network.modules() if type(module) is usual]
    inputs = random_inputs(prior)
    with torch.no_grad():
        plain = prior.unet(inputs["z_t"], inputs["timesteps"], inputs["semantics"].text).sample
        assert torch.equal(predict(network, inputs), plain), "at step 0 the prior's own prediction"
    before = [parameter.clone() for parameter in mine[0].parameters()]
    train_steps(network, inputs, 2)
    assert any(not torch.equal(a, b) for a, b in zip(before, mine[0].parameters(), strict=True))


def test_an_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown adapter\.msfm 'megsr'; did you mean megasr"):
        MegaSRNetwork(random_prior(), adapter(guidance=("canny",), msfm="megsr"))
