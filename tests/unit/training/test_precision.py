"""Options that save memory and time: what they do, and what they need."""

from __future__ import annotations

import pytest
import torch

from megasr.errors import UsageError
from megasr.networks.sites import run_block
from megasr.training.config import OptimizerConfig
from tests.helpers.training import fit, make_batch, make_module


def test_frozen_weights_are_held_in_bfloat16_and_trained_ones_are_not() -> None:
    module = make_module(frozen_dtype="bfloat16")
    before = [p.clone() for p in module.parameters() if p.requires_grad]
    trainer = fit(module, make_batch(), 2, precision="bf16-mixed")
    assert float(trainer.callback_metrics["train/loss"]) < 10
    for parameter in (*module.prior.parameters(), *module.network.parameters()):
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    assert any(
        not torch.equal(a, b) for a, b in zip(before, [p for p in module.parameters() if p.requires_grad], strict=True)
    )


def test_frozen_weights_in_bfloat16_need_autocast() -> None:
    with pytest.raises(UsageError, match="model.frozen_dtype bfloat16 needs trainer.precision bf16-mixed, got 32-true"):
        fit(make_module(frozen_dtype="bfloat16"), make_batch(), 1)


def test_averages_in_8_bits_need_a_gpu() -> None:
    with pytest.raises(UsageError, match="model.optimizer.state_bits 8 needs a GPU"):
        fit(make_module(optimizer=OptimizerConfig(state_bits=8)), make_batch(), 1, accelerator="cpu")


def test_every_block_runs_through_the_compiled_function() -> None:
    network = make_module(compile="blocks").network
    assert network.unet.run_block is network.controlnet.run_block is not run_block
    assert make_module().network.unet.run_block is run_block
