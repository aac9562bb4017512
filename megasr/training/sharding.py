"""FSDP2: which modules are sharded together, and the strategy with its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from megasr.training.last_checkpoint import LAST, NOT_WRITTEN, PREVIOUS
from megasr.training.sharded_checkpoint import gather, write_sharded


def shard_network(network: MegaSRNetwork, mesh: DeviceMesh, shard_frozen: bool) -> None:
    """Shard the network over the processes of a one-dimensional mesh, in place.

    Args:
        network: equal in every process.
        mesh: of all processes.
        shard_frozen: shard the frozen U-Net as well: less memory, and its weights are gathered in every pass.
    """
    frozen = {p for p in network.parameters() if not p.requires_grad}
    for unit in sharding_units(network):
        # One unit has one dtype, and frozen and trained weights may differ in it.
        for modules in ([m for m in unit if _trained(m)], [m for m in unit if not _trained(m)]):
            if modules and (shard_frozen or _trained(modules[0])):
                fully_shard(modules, mesh=mesh, ignored_params=None if shard_frozen else frozen)
    # Reshard the root too: EMA would not replace weights that stay gathered after a validation.
    fully_shard(network, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)
    for name in ("conditions", "encode", "read", "saft_maps", "guide"):
        register_fsdp_forward_method(network, name)


def sharding_units(network: MegaSRNetwork) -> list[list[nn.Module]]:
    """Modules whose weights are gathered together; each is called as a module, and owns parameters."""
    conditions: list[nn.Module] = [] if network.connector is None else [network.connector]
    units: list[list[nn.Module]] = []
    for adapted in network.models:
        site_of = dict(zip((id(b) for b, _ in iterate_transformers(adapted.model)), adapted.sites, strict=True))
        for unit, block in _blocks(adapted.model):
            if block is not None:
                site: Site = site_of[id(block)]
                unit += site.running_parts(block)
                conditions += site.reading_parts(block)
            units.append(unit)
    owning = [[m for m in unit if next(m.parameters(), None) is not None] for unit in (conditions, *units)]
    return [unit for unit in owning if unit]


def _blocks(model: nn.Module) -> Iterator[tuple[list[nn.Module], nn.Module | None]]:
    """(ResBlock, if any, as a list; block with a site or None) of a denoiser or ControlNet."""
    if hasattr(model, "transformer_blocks"):
        yield from (([], block) for block in model.transformer_blocks)
        return
    for block in (*model.down_blocks, *getattr(model, "up_blocks", ())):
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        yield from (([resnet], attention) for resnet, attention in zip(block.resnets, attentions, strict=True))
    middle = model.mid_block
    attentions = [*middle.attentions, None]
    yield from (([resnet], attention) for resnet, attention in zip(middle.resnets, attentions, strict=True))


def _trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Inside, the weights of sharded modules are whole, for calls that are not forwards."""
    sharded = [module for module in modules if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()


def like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor, equal in every process, on the device of `other` and sharded like it."""
    value = value.to(other.device)
    if isinstance(other, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
    return value


def local(value: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor, sharing its memory; the tensor itself when it is not sharded."""
    if isinstance(value, DTensor):
        with torch.no_grad():  # to_local records a graph otherwise, which takes longer than an optimizer step
            value = value.to_local()
    return value.detach()


def total_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """L2 norm () of all elements of tensors, which may be sharded. A collective: all processes must call it."""
    sharded = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    whole = [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
    squares = nn.utils.get_total_norm([local(shard) for shard in sharded]).square()
    if sharded:
        dist.all_reduce(squares, group=sharded[0].device_mesh.get_group())
    return (squares + nn.utils.get_total_norm(whole).square()).sqrt()


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, by_value: bool = False) -> None:
    """Clip the gradients in place by their common L2 norm, or each number by itself. A collective."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    shards = [local(gradient) for gradient in gradients]
    if by_value:
        for shard in shards:
            shard.clamp_(-limit, limit)
    elif shards:
        torch._foreach_mul_(shards, (limit / (total_norm(gradients) + 1e-6)).clamp(max=1))


class AdamW(torch.optim.AdamW):
    """AdamW (1711.05101) that steps on the shards of this process.

    torch's own finds out how the results of operations on lists of sharded tensors are sharded, which takes seconds in
    the first step. The state is sharded like the weights, as torch's is.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[torch.Tensor]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
        return has_complex


def _average_gradient(parameter: torch.Tensor) -> None:
    """Average over processes; earlier micro-batches' part, equal in all of them, stays as it is."""
    dist.all_reduce(parameter.grad)
    assert parameter.grad is not None
    parameter.grad /= dist.get_world_size()


class ShardedStrategy(ModelParallelStrategy):
    """Shard the trained weights, their gradients and the optimizer's state over all processes (FSDP2).

    Checkpoints hold the same as those of a single process, and any number of processes resumes from them with any
    strategy. With `single_file` it is the very same file, else a folder into which every process writes its shard.

    Args:
        shard_frozen: shard the frozen U-Net as well: less memory, and its weights are gathered in every pass.
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
        """Use all processes for data parallelism.

        Raises:
            UsageError: folders are to be written asynchronously.
        """
        if self._save_distributed_checkpoint and isinstance(self.checkpoint_io, AsyncCheckpointIO):
            raise UsageError("AsyncCheckpointFiles cannot write folders: set trainer.strategy.single_file to true")
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def spread(self, network: MegaSRNetwork, whole: Iterable[nn.Parameter] = ()) -> None:
        """Shard a network, once: a trainer that validates after training asks again.

        Args:
            network: equal in every process.
            whole: trained parameters beside it, which every process keeps; their gradients are averaged.
        """
        if not isinstance(network, FSDPModule):
            shard_network(network, self.device_mesh["data_parallel"], self.shard_frozen)
            for parameter in whole:
                parameter.register_post_accumulate_grad_hook(_average_gradient)

    def setup_optimizers(self, trainer: Any) -> None:
        """Build the optimizers over the sharded parameters.

        Raises:
            UsageError: the optimizer's kernels know no sharded tensors.
        """
        super().setup_optimizers(trainer)
        if any(type(optimizer).__module__.startswith("bitsandbytes") for optimizer in self.optimizers):
            raise UsageError(
                "model.optimizer.state_bits 8 does not work with ShardedStrategy, which shards the optimizer's state: "
                "leave it out, or take the strategy ddp"
            )

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights, sharded: `save_checkpoint` gathers or writes them."""
        assert self.lightning_module is not None
        return {n: p.detach() for n, p in self.lightning_module.named_parameters() if p.requires_grad}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state, sharded, numbered as without sharding."""
        state: dict[str, Any] = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the checkpoint; all processes take part, and wait until it is whole."""
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            try:
                write_sharded(checkpoint, path, keep=path.with_name(PREVIOUS) if path.name == LAST else None)
            except MegaSRError as error:
                if path.name != LAST:
                    raise
                rank_zero_warn(NOT_WRITTEN.format(error))
        else:
            checkpoint = gather(checkpoint, keep=self.is_global_zero)
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options=storage_options)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The whole checkpoint, on the CPU of every process; tensors of a single file stay on disk until used."""
        return read_checkpoint(Path(self.broadcast(checkpoint_path)), mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Every process takes its shard of the weights."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        with torch.no_grad():
            for name, value in checkpoint["state_dict"].items():
                parameters[name].copy_(like(value, parameters[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Every process takes its shard of the optimizers' states; step counts are not sharded."""
        for optimizer, whole in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                index: {name: like(v, parameters[index]) if v.shape == parameters[index].shape else v
                        for name, v in values.items()}
                for index, values in whole["state"].items()
            }  # fmt: skip
            optimizer.load_state_dict({**whole, "state": state})
