"""What a person sees of a command: one line per event, and no warning that asks for nothing that could be done."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import Any

# What libraries say of how this project uses them. MEGASR_DEBUG=1 shows it.
NOISE = (
    r"module.s. in eval mode",  # the frozen prior
    r"isinstance.treespec",  # Lightning's own use of torch
    r"weights_only",  # what is read, and how, is decided in megasr.training.checkpoint
    r"no `validation_step`",
    r"Trying to infer the `batch_size`",
    r"recommended to use `self.log\(.*sync_dist",
    r"Checkpoint directory .* exists and is not empty",  # it holds the run
    r"Using `DistributedSampler` with the dataloaders",  # megasr.training.protocol_metrics counts every image once
    r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`",  # a step that the gradient scaler left out
    r"TensorFloat32 tensor cores",
    r"pkg_resources is deprecated",
    r"Overwriting .* in registry",
    r"os.fork\(\) was called",
)
_NOISE = re.compile("|".join(NOISE))
_OUTDATED = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def is_noise(message: str, category: type[Warning]) -> bool:
    """Whether a warning is for the authors of a program, not for those who use it."""
    return issubclass(category, _OUTDATED) or _NOISE.search(message) is not None


def quiet_warnings() -> None:
    """From here on a warning is one line without its place in the code, and noise is not shown at all."""
    if os.environ.get("MEGASR_DEBUG") == "1":
        return

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not is_noise(str(message), category):
            sys.stderr.write(f"megasr: warning: {' '.join(str(message).split())}\n")

    warnings.showwarning = show


def quiet_lightning() -> None:
    """Leave out what Lightning tells of hardware, seeds and products; what this project tells through it stays."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_shown)  # once, however often it is called


def _is_shown(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or "/lightning/" not in record.pathname.replace(os.sep, "/")
