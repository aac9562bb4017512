"""FSDP2: the trained parameters, their gradients and the optimizer's state are spread over the processes.

What is gathered together is what is used together: one unit for everything that makes the conditions (once per batch),
one for each block, and the rest of the network. Forwards are called on parts of diffusers' blocks, not on the blocks,
so a unit is the list of those parts. The frozen prior is a copy in every process unless it is asked to be spread too.

Source: FSDP2 is torch.distributed.fsdp.fully_shard (per-parameter sharding, 2304.11277 sec. 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from megasr.networks.network import MegaSRNetwork
from megasr.networks.sites import Site, iterate_transformers


def shard_network(network: MegaSRNetwork, mesh: DeviceMesh, shard_frozen: bool) -> None:
    """Spread the network over the processes of a mesh, in place.

    Args:
        network: the same in every process.
        mesh: one-dimensional.
        shard_frozen: spread the frozen U-Net as well: less memory, and its weights travel in every pass.
    """
    frozen = {p for p in network.parameters() if not p.requires_grad}
    for unit in sharding_units(network):
        # Frozen and trained weights may differ in dtype, which one unit may not.
        for modules in ([m for m in unit if _trained(m)], [m for m in unit if not _trained(m)]):
            if modules and (shard_frozen or _trained(modules[0])):
                fully_shard(modules, mesh=mesh, ignored_params=None if shard_frozen else frozen)
    # The root too: weights that stay gathered after a validation would not be those that the averages replace.
    fully_shard(network, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)
    for name in ("conditions", "read", "saft_maps", "guide"):
        register_fsdp_forward_method(network, name)


def sharding_units(network: MegaSRNetwork) -> list[list[nn.Module]]:
    """Modules that are gathered together; each is called as a module, and owns parameters."""
    pairs = [(network.unet.unet, network.unet.sites)]
    if network.controlnet is not None:
        pairs.append((network.controlnet.controlnet, network.controlnet.sites))
    conditions: list[nn.Module] = [] if network.connector is None else [network.connector]
    blocks: list[list[nn.Module]] = []
    for model, sites in pairs:
        site_of = dict(zip((id(t) for t, _ in iterate_transformers(model)), sites, strict=True))
        for resnet, transformer in _blocks(model):
            unit = [resnet]
            if transformer is not None:
                site = site_of[id(transformer)]
                unit += [*_transformer_parts(transformer), *_site_parts(site)]
                conditions += _condition_parts(transformer, site)
            blocks.append(unit)
    owning = [[m for m in unit if next(m.parameters(), None) is not None] for unit in (conditions, *blocks)]
    return [unit for unit in owning if unit]


def _blocks(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """(ResBlock, transformer that follows it or None) of a U-Net or ControlNet."""
    for block in (*model.down_blocks, *getattr(model, "up_blocks", ())):
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        yield from zip(block.resnets, attentions, strict=True)
    middle = model.mid_block
    yield from zip(middle.resnets, [*middle.attentions, None], strict=True)


def _transformer_parts(transformer: nn.Module) -> list[nn.Module]:
    """What a site calls of the prior's transformer in every pass (see Site.forward)."""
    block = transformer.transformer_blocks[0]
    cross = block.attn2
    outer = [transformer.norm, transformer.proj_in, transformer.proj_out]
    return [*outer, block.norm1, block.attn1, block.norm2, cross.to_q, cross.to_out[0], block.norm3, block.ff]


def _site_parts(site: Site) -> list[nn.Module]:
    """What a site calls of its adapters in every pass; MSFM has nothing but what makes the conditions."""
    parts = [] if site.csm is None else [site.csm.gate]
    if site.rca is not None:
        parts += [site.rca.norm, site.rca.attention.to_q, site.rca.attention.to_out[0]]
    return parts


def _condition_parts(transformer: nn.Module, site: Site) -> list[nn.Module]:
    """What is called once per batch (see Site.read and MSFM)."""
    cross = transformer.transformer_blocks[0].attn2
    parts = [cross.to_k, cross.to_v]
    if site.csm is not None:
        parts += [site.csm.connector, site.csm.to_k, site.csm.to_v]
    if site.rca is not None:
        parts += [site.rca.attention.to_k, site.rca.attention.to_v]
    if site.msfm is not None:
        parts += [*site.msfm.safts, *([] if site.msfm.aggregation is None else [site.msfm.aggregation])]
    return parts


def _trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Inside, the weights of modules that are spread are whole, for calls that are not forwards."""
    spread = [module for module in modules if isinstance(module, FSDPModule)]
    for module in spread:
        module.unshard()
    try:
        yield
    finally:
        for module in spread:
            module.reshard()


def like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of `other`, and spread as that one is. Every process must have the same values."""
    value = value.to(other.device)
    if isinstance(other, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
    return value


def spread_like(share: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The tensor spread as `other` of which this process has `share`; a share of another shape is left as it is."""
    if not isinstance(other, DTensor) or share.shape != other.to_local().shape:
        return share
    spread = other.device_mesh, other.placements
    return DTensor.from_local(share, *spread, run_check=False, shape=other.shape, stride=other.stride())


def local(value: torch.Tensor) -> torch.Tensor:
    """What lies here of a tensor that may be spread; it shares its memory."""
    if isinstance(value, DTensor):
        with torch.no_grad():  # else DTensor makes a graph, which takes it longer than an optimizer's step
            value = value.to_local()
    return value.detach()


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor that may be spread, as one. All processes must ask for it together."""
    return value.full_tensor() if isinstance(value, DTensor) else value
