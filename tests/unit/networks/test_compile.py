"""torch.compile sees a whole block as one graph."""

import torch

from megasr.networks.network import MegaSRNetwork
from megasr.networks.sites import run_block
from tests.helpers.networks import adapter, random_inputs, random_prior


def test_a_block_compiles_without_graph_breaks():
    prior = random_prior()
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(guidance=("canny", "superpixel"), image=True, rca=True))
    conditions = network.conditions(inputs["lq_up"], inputs["semantics"], inputs["maps"])
    block = prior.unet.down_blocks[0]
    arguments = (block.resnets[0], block.attentions[0], network.unet.sites[0])
    features, time_embedding = torch.randn(2, 32, 8, 8), torch.randn(2, 128)
    compiled = torch.compile(run_block, fullgraph=True, backend="eager")  # fullgraph: a graph break is an error
    got = compiled(*arguments, features, time_embedding, conditions.unet[0])
    torch.testing.assert_close(got, run_block(*arguments, features, time_embedding, conditions.unet[0]))
