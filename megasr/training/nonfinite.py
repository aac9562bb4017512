"""A loss that is not finite stops the training before it reaches a weight, in all processes together."""

from __future__ import annotations

from pathlib import Path

import lightning
import torch
import torch.distributed as dist

from megasr.batch import SRBatch
from megasr.errors import MegaSRError
from megasr.files import open_whole
from megasr.tracking import first_line

_DRAWN = ("degradation", "text_dropped", "guidance_dropped", "types_dropped")


def finite_mean(
    module: lightning.LightningModule, loss: torch.Tensor, batch: SRBatch, timesteps: torch.Tensor
) -> torch.Tensor:
    """The mean () of the losses (B,) of all processes, which must ask together.

    Raises:
        MegaSRError: one is not finite, here or in another process; names the images of this one, and writes
            nonfinite.pt with what was drawn for them (nonfinite.rank1.pt of the second process, and so on).
    """
    mean = loss.detach().mean()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    if torch.isfinite(mean):
        return mean
    if torch.isfinite(loss).all():
        raise MegaSRError(f"loss is not finite at step {module.global_step} in another process; see its line")
    rank = module.trainer.global_rank
    path = Path(module.trainer.default_root_dir) / ("nonfinite.pt" if rank == 0 else f"nonfinite.rank{rank}.pt")
    report = {"step": module.global_step, "keys": batch["keys"], "loss": loss.detach().cpu()}
    drawn = {name: batch.get(name) for name in _DRAWN}
    place = f"are in {path}"
    try:
        with open_whole(path) as file:
            torch.save(report | drawn | {"timesteps": timesteps.cpu()}, file)
    except RuntimeError as error:  # MegaSRError, or torch's for a full disk
        place = f"are lost: {first_line(error)}"
    bad = [key for key, value in zip(batch["keys"], loss, strict=True) if not torch.isfinite(value)]
    raise MegaSRError(
        f"loss is not finite at step {module.global_step} for {', '.join(bad)}; the weights were not changed, "
        f"the batch's keys and degradation {place}"
    )
