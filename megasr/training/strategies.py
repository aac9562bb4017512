"""ShardedStrategy: Lightning's ModelParallelStrategy (FSDP2) with checkpoints that hold what was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.distributed.fsdp import FSDPModule

from megasr.errors import MegaSRError, UsageError
from megasr.networks.network import MegaSRNetwork
from megasr.training.checkpoint import read_checkpoint
from megasr.training.last_checkpoint import LAST, PREVIOUS
from megasr.training.local_step import step_locally
from megasr.training.sharded_checkpoint import gather, write_sharded
from megasr.training.sharding import like, local, shard_network, spread_like


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
