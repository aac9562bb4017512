"""Which block uses which guidance: strengths of gates and modulations, and gradients of the parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megasr.networks.network import MegaSRNetwork
from megasr.training.probes import SiteProbes, gradient_norms, trained_parts
from tests.helpers.networks import adapter, predict, random_inputs, random_prior, train_steps

EVERYTHING = {"guidance": ("canny", "oracle_depth", "superpixel"), "image": True, "rca": True}


def network(**changes: Any) -> MegaSRNetwork:
    return MegaSRNetwork(random_prior(), adapter(**changes), seed=0)


def strengths(net: MegaSRNetwork, inputs: dict, guided: torch.Tensor | None = None) -> dict[str, float]:
    probes = SiteProbes(net)
    with probes:
        predict(net, inputs)
        probes.take(guided)
    return probes.means(probes.totals(torch.device("cpu")))


def test_branches_are_silent_at_first_and_heard_after_a_step() -> None:
    net, inputs = network(**EVERYTHING), random_inputs(random_prior())
    before = strengths(net, inputs)
    assert list(before) == SiteProbes(net).keys
    sites = {key.split("/")[1] for key in before}
    assert {"controlnet.down0.0", "controlnet.mid.0", "unet.mid.0", "unet.up2.1"} <= sites
    assert {"gate/unet.mid.0", "modulation/unet.mid.0/canny", "modulation/unet.mid.0/region"} <= set(before)
    assert set(before.values()) == {0.0}
    train_steps(net, inputs, 3)
    after = strengths(net, inputs)
    assert all(0 < value < 10 for value in after.values()), after
    assert not SiteProbes(net).watching
    assert not [m for m in net.modules() if m._forward_hooks or m._forward_pre_hooks], "hooks were left behind"


@pytest.mark.parametrize("stage1", ["v1", "v2"])
@pytest.mark.parametrize("guidance", [("noise",), ("canny", "noise")])
def test_what_does_not_look_at_the_map_is_no_use_of_it(stage1: str, guidance: tuple[str, ...]) -> None:
    net, inputs = network(guidance=guidance, stage1=stage1), random_inputs(random_prior())
    train_steps(net, inputs, 2)
    seen = strengths(net, inputs)
    with torch.no_grad():
        for site in net.unet.sites:
            for saft in site.msfm.safts:
                saft.mlp[0].weight.zero_()  # a constant, large or not, is no use of the map
                saft.beta.bias += 1
    blind = strengths(net, inputs)
    assert all(value > 0 for value in seen.values())
    assert all(
        (value == pytest.approx(0, abs=1e-6)) == key.startswith("modulation/unet") for key, value in blind.items()
    )


def test_a_strength_is_the_share_of_the_features() -> None:
    """With a scalar gate: |w A_i| / |F + A_t + w A_i|, taken from the tensors themselves."""
    net, inputs = network(image=True, gate="scalar"), random_inputs(random_prior())
    site, block = net.unet.sites[0], net.unet.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    with torch.no_grad():
        site.csm.gate.weight.fill_(0.5)
    seen: dict[str, torch.Tensor] = {}
    handles = [
        site.csm.gate.register_forward_hook(lambda m, i, o: seen.update(ungated=i[0])),
        block.norm3.register_forward_pre_hook(lambda m, i: seen.update(tokens=i[0])),
    ]
    predict(net, inputs)
    for handle in handles:
        handle.remove()
    shares = [0.5 * a.norm() / t.norm() for a, t in zip(seen["ungated"], seen["tokens"], strict=True)]
    measured = strengths(net, inputs)
    assert measured["gate/unet.down0.0"] == pytest.approx(float(sum(shares).detach()) / 2, rel=1e-5)
    assert measured["gate/unet.mid.0"] == 0


def test_samples_without_their_maps_do_not_count() -> None:
    net, inputs = network(guidance=("canny",)), random_inputs(random_prior())
    train_steps(net, inputs, 2)
    inputs["maps"]["canny"][1] = 0
    both, first = strengths(net, inputs), strengths(net, inputs, torch.tensor([True, False]))
    assert all(first[key] == pytest.approx(2 * both[key], rel=1e-4) for key in both)
    assert strengths(net, inputs, torch.tensor([False, False])) == {}


def test_gradients_of_the_parts_are_those_of_the_whole() -> None:
    net, inputs = network(**EVERYTHING, prior_lora=2), random_inputs(random_prior())
    train_steps(net, inputs, 2)
    parts = trained_parts(net)
    assert list(parts) == ["lq_encoder", "controlnet", "csm", "rca", "msfm", "prior_lora"]
    trained = [p for p in net.parameters() if p.requires_grad]
    assert {id(p) for part in parts.values() for p in part} == {id(p) for p in trained}
    assert sum(len(part) for part in parts.values()) == len(trained)
    norms = gradient_norms(parts)
    whole = torch.cat([p.grad.flatten() for p in trained]).double().norm()
    assert norms["grad_norm/total"] == pytest.approx(float(whole), rel=1e-5)
    encoder = torch.cat([p.grad.flatten() for p in net.controlnet.controlnet.controlnet_cond_embedding.parameters()])
    assert norms["grad_norm/lq_encoder"] == pytest.approx(float(encoder.norm()), rel=1e-5)
