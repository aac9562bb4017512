"""What restores calls parts of the network beside its forward pass: also where its weights are spread."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from megasr.training.sharding import shard_network
from tests.helpers.inference import loud_module
from tests.helpers.training import make_batch


def test_a_network_whose_weights_are_spread_restores_the_same(tmp_path):
    module, batch = loud_module(), make_batch()
    expected = module.restore(batch)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        shard_network(module.network, init_device_mesh("cpu", (1,)), shard_frozen=True)
        assert torch.equal(module.restore(batch), expected)
    finally:
        dist.destroy_process_group()
