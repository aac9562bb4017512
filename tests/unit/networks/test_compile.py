"""torch.compile sees a whole block as one graph."""

import pytest
import torch

from megasr.networks.network import MegaSRNetwork
from megasr.networks.sites import run_block
from megasr.prior import load_prior
from tests.helpers.networks import adapter, random_inputs
from tests.helpers.sdxl import sdxl_folder
from tests.helpers.training import prior_folder


@pytest.mark.parametrize("folder", [prior_folder, sdxl_folder])
def test_a_block_compiles_without_graph_breaks(folder):
    prior = load_prior(folder())
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(guidance=("canny", "superpixel"), image=True, rca=True))
    conditions = network.conditions(inputs["lq_up"], inputs["semantics"], inputs["maps"])
    middle = prior.unet.mid_block
    place = [transformer for transformer, _ in network.sites].index(middle.attentions[0])
    arguments = (middle.resnets[0], middle.attentions[0], network.unet.sites[place])
    channels, width = middle.resnets[0].in_channels, middle.resnets[0].time_emb_proj.in_features
    features, time_embedding = torch.randn(2, channels, 2, 2), torch.randn(2, width)
    compiled = torch.compile(run_block, fullgraph=True, backend="eager")  # fullgraph: a graph break is an error
    got = compiled(*arguments, features, time_embedding, conditions.unet[place])
    torch.testing.assert_close(got, run_block(*arguments, features, time_embedding, conditions.unet[place]))
