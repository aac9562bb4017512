"""Callbacks: EMA and progress."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from megasr.console import progress_bars
from megasr.errors import UsageError
from megasr.training.checkpoint import adapter_parameters
from megasr.training.sharding import like, local


class EMA(lightning.Callback):
    """Exponential moving average of the adapter's parameters, used for validation, testing and inference.

    The frozen prior and critics are not averaged. The decay is warmed up as min(decay, (1 + n) / (10 + n)) after n
    optimizer steps, so that the first weights do not dominate short runs.

    Args:
        decay: share of the old average that is kept per optimizer step, in [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"EMA decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.shadow: dict[str, torch.Tensor] = {}
        self._updates = 0
        self._raw: dict[str, torch.Tensor] | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.shadow:
            self.shadow = {name: p.detach().clone() for name, p in adapter_parameters(pl_module).items()}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # A restored average is whole and on the CPU, and some strategies restore it after on_fit_start.
        trained = adapter_parameters(pl_module)
        self.shadow = {name: like(value, trained[name]) for name, value in self.shadow.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *unused: object
    ) -> None:
        if trainer.global_step == self._updates:
            return  # gradients are accumulated
        self._updates = trainer.global_step
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        trained = adapter_parameters(pl_module)
        shadows, parameters = ([local(values[name]) for name in trained] for values in (self.shadow, trained))
        torch._foreach_lerp_(shadows, parameters, 1 - decay)  # one call: there are hundreds of small tensors

    @torch.no_grad()
    def swap_in(self, pl_module: lightning.LightningModule) -> None:
        if self.shadow and self._raw is None:
            trained = adapter_parameters(pl_module)
            self._raw = {name: p.detach().clone() for name, p in trained.items()}
            for name, parameter in trained.items():
                parameter.copy_(like(self.shadow[name], parameter))

    @torch.no_grad()
    def swap_out(self, pl_module: lightning.LightningModule) -> None:
        if self._raw is not None:
            for name, parameter in adapter_parameters(pl_module).items():
                parameter.copy_(self._raw[name])
            self._raw = None

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.swap_out(pl_module)

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        # After an error inside validation the raw weights are saved.
        self.swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.shadow = dict(state_dict["shadow"])
        self._updates = state_dict["updates"]


class StepProgress(ProgressBar):
    """Steps, time left and the numbers logged with prog_bar: a bar, or a line per minute where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._open, self._enabled = ExitStack(), True
        self._advance: Any = None

    def disable(self) -> None:
        self._enabled = False  # Lightning calls it on all processes but the first

    def enable(self) -> None:
        self._enabled = True

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and self._advance is None:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

            numbers = TextColumn("{task.fields[numbers]}", markup=False)
            self._advance = self._open.enter_context(progress_bars(BarColumn(), MofNCompleteColumn(), numbers))

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        sizes = {True: 0, False: 0}
        for parameter in pl_module.parameters():
            sizes[parameter.requires_grad] += parameter.numel()
        rank_zero_info(f"{sizes[True] / 1e6:.1f} M parameters are trained, {sizes[False] / 1e6:.1f} M are frozen")

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        rank_zero_info(f"{trainer.global_step} steps are done; the run is in {trainer.default_root_dir}")

    def on_train_batch_end(self, trainer: lightning.Trainer, *unused: Any) -> None:
        self._show("training", trainer.global_step, trainer.estimated_stepping_batches)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *unused: Any, **named: Any) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "validate":
            self._show("validating", _batches(trainer), sum(trainer.num_val_batches))

    def on_test_batch_end(self, trainer: lightning.Trainer, *unused: Any, **named: Any) -> None:
        self._show("restoring and measuring", _batches(trainer), sum(trainer.num_test_batches))

    def _show(self, name: str, done: int, total: float) -> None:
        if self._enabled and self._advance is not None:
            values = self.trainer.progress_bar_metrics.items()
            numbers = "  ".join(f"{key} {value:.4g}" for key, value in values if isinstance(value, int | float))
            self._advance(name, done, int(total) if total not in (-1, float("inf")) else None, numbers=numbers)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._open.close()
        self._advance = None

    def on_exception(self, trainer: lightning.Trainer, *unused: Any) -> None:
        self.teardown(trainer, trainer.lightning_module, "")  # the terminal is for the message


def _batches(trainer: lightning.Trainer) -> int:
    return trainer._evaluation_loop.batch_progress.current.ready
