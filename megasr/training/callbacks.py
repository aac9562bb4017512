"""Callbacks that a recipe may add to the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import torch

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.evaluation.evaluator import Evaluator, Row
from megasr.evaluation.protocol import get_protocol
from megasr.files import write_whole


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
        device = pl_module.device
        if not self.shadow:
            self.shadow = {name: p.detach().clone() for name, p in self._trained(pl_module).items()}
        self.shadow = {name: value.to(device) for name, value in self.shadow.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *unused: object
    ) -> None:
        # Gradient accumulation: the weights move once per optimizer step, not once per batch.
        if trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        for name, parameter in self._trained(pl_module).items():
            self.shadow[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def swap_in(self, pl_module: lightning.LightningModule) -> None:
        if self.shadow and self._raw is None:
            trained = self._trained(pl_module)
            self._raw = {name: p.detach().clone() for name, p in trained.items()}
            for name, parameter in trained.items():
                parameter.copy_(self.shadow[name])

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


class ProtocolMetrics(lightning.Callback):
    """Measures the sr of `megasr test` under a protocol: means to the logger, one row per image to test.json.

    Args:
        protocol: name of the evaluation protocol.
    """

    def __init__(self, protocol: str = "weight-free-v1") -> None:
        self.protocol = get_protocol(protocol)
        self.rows: list[Row] = []

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse several processes: Lightning pads the last batch there, and images would be counted twice."""
        if trainer.world_size > 1:
            raise UsageError(f"test runs on one device, got {trainer.world_size}: every image must count once")
        self.rows = []
        self._evaluator = Evaluator(self.protocol)

    def on_test_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: SRBatch, *_: Any
    ) -> None:
        """Measure one batch; `outputs` is the sr that test_step returned."""
        self.rows += self._evaluator.rows(outputs.float().cpu(), batch["hq"].float().cpu(), batch["keys"])

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the means and write every row beside the run."""
        means = self._evaluator.summary(self.rows)
        pl_module.log_dict({f"test/{name}": mean for name, mean in means.items()})
        protocol = {"name": self.protocol.name, "fingerprint": self.protocol.fingerprint}
        path = Path(trainer.log_dir or trainer.default_root_dir) / "test.json"
        record = {"protocol": protocol, "means": means, "rows": self.rows}
        write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
