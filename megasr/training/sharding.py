"""FSDP2 and DDP: strategies, the local optimizer step, clipping."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from megasr.errors import MegaSRError, UsageError
from megasr.networks.network import MegaSRNetwork
from megasr.networks.sites import Site, iterate_transformers
from megasr.training.checkpoint import read_checkpoint
from megasr.training.last_checkpoint import LAST, PREVIOUS
from megasr.training.sharded_checkpoint import gather, write_sharded


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


def step_locally(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer step on local shares. Between steps it holds the spread parameters, and local states of them."""
    exchanged: list[tuple[torch.Tensor, torch.Tensor]] = []  # (spread parameter, its share), during a step

    def rename(new: dict[int, torch.Tensor]) -> None:
        for group in optimizer.param_groups:
            group["params"] = [new[id(p)] for p in group["params"]]
        optimizer.state = defaultdict(dict, {new[id(p)]: state for p, state in optimizer.state.items()})

    def exchange() -> None:
        spread = [p for group in optimizer.param_groups for p in group["params"]]
        exchanged[:] = zip(spread, _shares(spread), strict=True)
        rename({id(p): share for p, share in exchanged})

    def before(optimizer: torch.optim.Optimizer, arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        _, *rest = arguments
        closure = settings.pop("closure", None) or (rest[0] if rest else None)
        if closure is None:
            exchange()
            return arguments, settings

        def closure_and_exchange() -> Any:
            loss = closure()
            exchange()  # not before: the closure zeroes and makes the gradients of the spread parameters
            return loss

        return (optimizer,), {**settings, "closure": closure_and_exchange}

    def after(*unused: Any) -> None:
        rename({id(share): p for p, share in exchanged})
        exchanged.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def total_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """L2 norm () of all elements of tensors that may be spread. All processes must ask for it together."""
    norm: torch.Tensor = torch.nn.utils.get_total_norm([local(tensor) for tensor in tensors])
    if not (tensors and isinstance(tensors[0], DTensor)):
        return norm
    squared = norm.square()
    dist.all_reduce(squared, group=tensors[0].device_mesh.get_group())
    return squared.sqrt()


def clip_norm(parameters: Iterable[torch.Tensor], max_norm: float) -> None:
    """Scale the gradients of parameters that may be spread, in place, so that their norm is at most max_norm."""
    graded = [p for p in parameters if p.grad is not None]
    norm = total_norm([p.grad for p in graded])
    torch.nn.utils.clip_grads_with_norm_(_shares(graded), max_norm, norm)


def _shares(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What lies here of parameters and of their gradients; the memory is shared."""
    shares = []
    for parameter in parameters:
        share = local(parameter)
        share.grad = None if parameter.grad is None else local(parameter.grad)
        shares.append(share)
    return shares


class ShardedStrategy(ModelParallelStrategy):
    """Spread what is trained over all processes (FSDP2).

    Checkpoints hold the same as those of a single process, and any number of processes, with any strategy, goes on from
    them: `single_file` is the very same file, else a folder into which every process writes its own share.

    Args:
        shard_frozen: spread the frozen U-Net as well: less memory, and its weights travel in every pass.
        single_file: gather checkpoints in the first process's memory; False writes a folder (DCP).
        timeout_s: how long a process waits for the others before it gives up.
    """

    def __init__(self, shard_frozen: bool = False, single_file: bool = True, timeout_s: float = 1800) -> None:
        super().__init__(
            data_parallel_size=1,  # of all processes: set when their number is known
            tensor_parallel_size=1,
            save_distributed_checkpoint=not single_file,
            timeout=timedelta(seconds=timeout_s),
        )
        self.shard_frozen = shard_frozen

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimizer's state to load_optimizer_state_dict."""
        return True

    def setup_environment(self) -> None:
        """All processes share the data, and no tensor.

        Raises:
            UsageError: folders are to be written asynchronously.
        """
        if self._save_distributed_checkpoint and isinstance(self.checkpoint_io, AsyncCheckpointIO):
            raise UsageError("AsyncCheckpointFiles cannot write folders: set trainer.strategy.single_file to true")
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def spread(self, network: MegaSRNetwork) -> None:
        """Spread a network, once: a trainer that validates after it has trained asks again."""
        if not isinstance(network, FSDPModule):
            shard_network(network, self.device_mesh["data_parallel"], self.shard_frozen)

    def setup_optimizers(self, trainer: Any) -> None:
        """Every process steps on its own share."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            step_locally(optimizer)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What was trained, spread as it is: `save_checkpoint` gathers or writes it."""
        assert self.lightning_module is not None
        return {n: p.detach() for n, p in self.lightning_module.named_parameters() if p.requires_grad}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state, of which every process has its share, as spread tensors."""
        state: dict[str, Any] = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return _with_state(state, optimizer, spread_like)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the checkpoint; all processes take part, and wait until it is whole."""
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            try:
                write_sharded(checkpoint, path, keep=path.with_name(PREVIOUS) if path.name == LAST else None)
            except MegaSRError as error:
                if path.name != LAST:
                    raise
                rank_zero_warn(f"{error}: this checkpoint is left out, the training goes on, the one before is kept")
        else:
            checkpoint = gather(checkpoint, keep=self.is_global_zero)
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options=storage_options)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The whole checkpoint, on the CPU of every process; what is of a single file stays on the disk until used."""
        return read_checkpoint(Path(self.broadcast(checkpoint_path)), mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Every process takes its share of the weights."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        with torch.no_grad():
            for name, value in checkpoint["state_dict"].items():
                parameters[name].copy_(like(value, parameters[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Every process takes its share of the optimizers' states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_with_state(state, optimizer, _share))


def _share(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """What is as large as the parameter is spread as it is; step counts and the like are not."""
    return local(like(value, parameter)) if value.shape == parameter.shape else value


def _with_state(state: dict[str, Any], optimizer: Any, change: Callable[..., torch.Tensor]) -> dict[str, Any]:
    """An optimizer's state_dict with every tensor changed; `change` gets the parameter that it belongs to as well."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    changed = {
        index: {n: change(v, parameters[index]) if isinstance(v, torch.Tensor) else v for n, v in of_one.items()}
        for index, of_one in state["state"].items()
    }
    return {**state, "state": changed}
