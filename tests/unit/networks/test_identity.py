"""Contract 1: at step 0 the adapted networks are diffusers' own, bit for bit."""

import pytest
import torch
from diffusers import ControlNetModel

from megasr.networks.network import MegaSRNetwork
from megasr.networks.sites import iterate_transformers
from tests.helpers.networks import adapter, predict, random_inputs, random_prior, train_steps

CONFIGS = {
    "bare": {"controlnet": True},
    "guidance": {"guidance": ("canny", "superpixel")},
    "image-linear": {"image": True},
    "image-channel": {"image": True, "gate": "channel"},
    "image-scalar": {"image": True, "gate": "scalar"},
    "image-shared-connector": {"image": True, "connector": "shared"},
    "guidance-sum": {"guidance": ("canny", "superpixel", "noise"), "fusion": "sum"},
    "guidance-concat": {"guidance": ("canny", "superpixel", "noise"), "fusion": "concat"},
    "guidance-in-unet": {"guidance": ("canny", "noise"), "fusion_in": "unet"},
    "guidance-in-controlnet": {"guidance": ("canny", "noise"), "fusion_in": "controlnet"},
    "rca": {"rca": True},
    "all-without-controlnet": {"guidance": ("canny", "noise"), "image": True, "rca": True, "controlnet": False},
    "all": {"guidance": ("canny", "superpixel", "noise"), "image": True, "rca": True},
}


def diffusers_prediction(prior, inputs):
    with torch.no_grad():
        return prior.unet(inputs["z_t"], inputs["timesteps"], inputs["semantics"].text).sample


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_adapted_unet_equals_diffusers_at_step_0_and_not_once_trained(changes):
    prior = random_prior()
    inputs, before = random_inputs(prior), prior.fingerprint()
    network = MegaSRNetwork(prior, adapter(**changes))
    with torch.no_grad():
        assert torch.equal(predict(network, inputs), diffusers_prediction(prior, inputs))
    train_steps(network, inputs)
    with torch.no_grad():
        assert not torch.equal(predict(network, inputs), diffusers_prediction(prior, inputs))
    assert prior.fingerprint() == before, "the prior's weights are not touched"


def test_as_drawn_replaces_the_priors_features():
    prior = random_prior()
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(guidance=("canny",), fusion_init="as_drawn"))
    with torch.no_grad():
        assert not torch.allclose(predict(network, inputs), diffusers_prediction(prior, inputs), atol=1e-2)


def test_identity_with_convolutional_projections_as_in_sd_1():
    prior = random_prior(use_linear_projection=False, down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",))
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(guidance=("canny",), image=True))
    with torch.no_grad():
        assert torch.equal(predict(network, inputs), diffusers_prediction(prior, inputs))


def test_controlnet_equals_diffusers_controlnet():
    prior = random_prior()
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(image=True, guidance=("canny",)))
    ours = network.controlnet
    theirs = ControlNetModel.from_unet(prior.unet, conditioning_embedding_out_channels=(16, 32, 96))
    for index, parameter in enumerate(ours.controlnet.parameters()):  # zero convolutions would hide everything
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(index))
    theirs.load_state_dict(ours.controlnet.state_dict())
    with torch.no_grad():
        conditions = network.conditions(inputs["lq_up"], inputs["semantics"], inputs["maps"])
        got = ours(inputs["z_t"], inputs["timesteps"], conditions.f_lq, conditions.controlnet)
        arguments = (inputs["z_t"], inputs["timesteps"], inputs["semantics"].text, inputs["lq_up"])
        skips, middle = theirs(*arguments, return_dict=False)
    assert all(torch.equal(a, b) for a, b in zip(got.skips, skips, strict=True))
    assert torch.equal(got.middle, middle) and middle.abs().max() > 0


def test_a_condition_too_few_is_an_error_not_a_silent_skip():
    prior = random_prior()
    network = MegaSRNetwork(prior, adapter())
    sites = network.unet.sites
    assert len(sites) == len(list(iterate_transformers(prior.unet)))
    inputs = random_inputs(prior)
    conditions = network.conditions(inputs["lq_up"], inputs["semantics"], {})
    with pytest.raises(ValueError, match="shorter"):
        network(inputs["z_t"], inputs["timesteps"], conditions._replace(unet=conditions.unet[:-1]))
