"""Who is trained and who is not, for every part of the adapter."""

import pytest
import torch

from megasr.errors import UsageError
from megasr.networks.network import MegaSRNetwork
from tests.helpers.networks import adapter, predict, random_inputs, random_prior, train_steps

FULL = {"guidance": ("canny", "superpixel", "noise"), "image": True, "rca": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion_init": "residual", "stage1": "v2", "gate": "linear"},
        {"fusion_init": "as_drawn", "stage1": "v1", "gate": "channel"},
        {"fusion_init": "residual", "stage1": "v1", "gate": "scalar"},
        {"connector": "shared"},
        {"fusion": "sum"},
        {"fusion": "concat", "fusion_in": "controlnet"},
    ],
)
def test_gradients_reach_every_trained_parameter_and_no_frozen_one(changes):
    prior = random_prior()
    network = MegaSRNetwork(prior, adapter(**FULL, **changes))
    train_steps(network, random_inputs(prior), steps=4)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    dead = [name for name, p in trained.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead
    assert all(p.grad is None for p in prior.parameters())
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not frozen


def test_copied_keys_and_values_are_frozen_copies_of_the_priors():
    prior = random_prior()
    network = MegaSRNetwork(prior, adapter(image=True))
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    assert not any(name.endswith(("csm.to_k.weight", "csm.to_v.weight")) for name in names)
    attention = prior.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    assert torch.equal(network.unet.sites[0].csm.to_k.weight, attention.to_k.weight)
    assert network.unet.sites[0].csm.to_k.weight is not attention.to_k.weight


def test_no_graph_is_built_for_what_is_frozen():
    """Keys and values of the prior's text attention, and its encoder up to the first trained site."""
    prior = random_prior()
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(guidance=("canny",), image=True))
    conditions = network.conditions(inputs["lq_up"], inputs["semantics"], inputs["maps"])
    assert not any(tensor.requires_grad for condition in conditions.unet for tensor in condition.text[0])
    assert all(tensor.requires_grad for condition in conditions.unet for tensor in condition.image)
    grown = []
    prior.unet.down_blocks[0].attentions[0].proj_in.register_forward_hook(lambda *call: grown.append(call[2]))
    network(inputs["z_t"], inputs["timesteps"], conditions)
    assert [tensor.requires_grad for tensor in grown] == [False]


def test_without_trained_sites_the_priors_encoder_has_no_graph():
    """The ControlNet enters after the encoder: there is no backward pass through it."""
    prior = random_prior()
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(guidance=("canny",), fusion_in="controlnet"))
    middle = []
    prior.unet.mid_block.resnets[-1].register_forward_hook(lambda *call: middle.append(call[2]))
    prediction = predict(network, inputs)
    assert [tensor.requires_grad for tensor in middle] == [False]
    assert prediction.requires_grad


def test_gradient_checkpointing_changes_no_number():
    prior = random_prior()
    inputs = random_inputs(prior)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = MegaSRNetwork(prior, adapter(**FULL, fusion_init="as_drawn", gradient_checkpointing=recompute))
        predict(network, inputs).square().mean().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    plain, recomputed = gradients
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_gradient_checkpointing_really_recomputes(monkeypatch):
    import megasr.networks.sites as sites

    calls = []
    original = sites.checkpoint
    monkeypatch.setattr(sites, "checkpoint", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    prior = random_prior()
    network = MegaSRNetwork(prior, adapter(gradient_checkpointing=True))
    predict(network, random_inputs(prior)).sum().backward()
    assert len(calls) > len(network.unet.sites)


def test_missing_tokens_are_one_clear_error():
    prior = random_prior()
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(image=True))
    with pytest.raises(UsageError, match="image tokens"):
        network.conditions(inputs["lq_up"], inputs["semantics"]._replace(image=None), inputs["maps"])


def test_a_size_that_does_not_fit_names_the_multiple():
    prior = random_prior()
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter())
    with pytest.raises(UsageError, match="40x32 px.*multiples of 16"):
        network.conditions(torch.rand(2, 3, 32, 40), inputs["semantics"], {})
