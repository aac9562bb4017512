"""AdamW over what is trained, as OptimizerConfig says."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from megasr.errors import UsageError
from megasr.training.config import OptimizerConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW (1711.05101) over the parameters that are trained.

    Raises:
        UsageError: averages in 8 bits, and the parameters are not on a GPU, or bitsandbytes is not installed.
    """
    trained = [p for p in parameters if p.requires_grad]
    settings = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
    }
    if config.state_bits is None:
        return torch.optim.AdamW(trained, **settings)
    if trained[0].device.type != "cuda":
        raise UsageError("model.optimizer.state_bits 8 needs a GPU; leave it out on the processor")
    try:
        import bitsandbytes
    except ImportError as error:
        raise UsageError("model.optimizer.state_bits 8 needs bitsandbytes: pip install bitsandbytes") from error
    return bitsandbytes.optim.AdamW8bit(trained, **settings)
