"""The benchmark of a step's parts: backward counts for the part whose forward made it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.benchmarks.step_parts import Observer, kind_of, place_of, table


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("prior.vae.encoder.conv_in", "vae"),
        ("prior.unet.mid_block", "unet"),
        ("network.unet.sites.0.msfm.safts.0.mlp", "msfm"),
        ("network.controlnet.controlnet.controlnet_cond_embedding.conv_in", "lq_encoder"),
        ("network.controlnet.controlnet.mid_block", "controlnet"),
        ("restoration_loss.terms.gan.heads", "losses and discriminator"),
    ],
)
def test_modules_have_the_names_of_the_adapters_parts(module: str, place: str) -> None:
    assert place_of(module) == place


def test_backward_counts_for_the_part_that_made_it() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prior = nn.ModuleDict({"vae": nn.Linear(8, 16), "unet": nn.Linear(16, 4)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.prior["vae"](x)
            torch.ones(3) * 2  # no node of autograd between the two
            return self.prior["unet"](hidden)

    module, x = Pair(), torch.rand(10, 8)
    with Observer(module) as observer:
        module(x).sum().backward()
    reached = {"operations": 1e9, "bytes": 1e9}
    parts, kinds = table([observer.rows], 0, reached), table([observer.rows], 1, reached)
    operations = {part: sum(row["operations"] for (p, _), row in observer.rows.items() if p == part) for part in parts}
    forward = {"vae": 2 * 10 * 8 * 16, "unet": 2 * 10 * 16 * 4}
    assert operations["vae"] == 2 * forward["vae"]  # no gradient to x
    assert operations["unet"] == 3 * forward["unet"]
    assert kinds["matrix product"]["share"] > 0
    assert sum(row["share"] for row in parts.values()) == pytest.approx(1, abs=0.01)


def test_an_operation_has_one_kind() -> None:
    assert kind_of("aten.convolution_backward") == "convolution" and kind_of("aten.addmm") == "matrix product"
    assert kind_of("aten._fused_adamw_") == "optimizer" and kind_of("aten.silu") == "elementwise"
