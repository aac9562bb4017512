"""Callbacks that a recipe may add to the trainer."""

from __future__ import annotations

from typing import Any

import lightning
import torch

from megasr.errors import UsageError
from megasr.training.sharding import like, local


class EMA(lightning.Callback):
    """Exponential moving average of the trained parameters, used for validation, testing and inference.

    Only what is trained is averaged, so a frozen prior costs nothing. The decay is warmed up as
    min(decay, (1 + n) / (10 + n)) after n optimizer steps, so that short runs are not dominated by their first weights.

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

    def _trained(self, module: lightning.LightningModule) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in module.named_parameters() if p.requires_grad}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.shadow:
            self.shadow = {name: p.detach().clone() for name, p in self._trained(pl_module).items()}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # What was restored is whole and on the CPU, and with some strategies it is restored after on_fit_start.
        trained = self._trained(pl_module)
        self.shadow = {name: like(value, trained[name]) for name, value in self.shadow.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *unused: object
    ) -> None:
        # Gradient accumulation: the weights move once per optimizer step, not once per batch.
        if trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        trained = self._trained(pl_module)
        shadows, parameters = ([local(values[name]) for name in trained] for values in (self.shadow, trained))
        torch._foreach_lerp_(shadows, parameters, 1 - decay)  # one call: there are hundreds of small tensors

    @torch.no_grad()
    def swap_in(self, pl_module: lightning.LightningModule) -> None:
        if self.shadow and self._raw is None:
            trained = self._trained(pl_module)
            self._raw = {name: p.detach().clone() for name, p in trained.items()}
            for name, parameter in trained.items():
                parameter.copy_(like(self.shadow[name], parameter))

    @torch.no_grad()
    def swap_out(self, pl_module: lightning.LightningModule) -> None:
        if self._raw is not None:
            for name, parameter in self._trained(pl_module).items():
                parameter.copy_(self._raw[name])
            self._raw = None

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.swap_in(pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.swap_out(pl_module)

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.swap_in(pl_module)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.swap_out(pl_module)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        # An error inside validation must not leave the averaged weights where the raw ones are saved from.
        self.swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.shadow = dict(state_dict["shadow"])
        self._updates = state_dict["updates"]
