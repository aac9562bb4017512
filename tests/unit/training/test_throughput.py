"""The batch as it is put together, and operations against a count of a real pass."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megasr.networks.network import MegaSRNetwork
from megasr.training.probes import OperationCount, describe_batch
from tests.helpers.networks import adapter, random_inputs, random_prior
from tests.helpers.ranks import run_ranks


def test_the_arithmetic_of_a_batch_is_said() -> None:
    trainer = SimpleNamespace(accumulate_grad_batches=4, world_size=2, num_training_batches=100)
    assert describe_batch(trainer, 3) == (  # type: ignore[arg-type]
        "global batch 24 = 3 images x 2 device(s) x 4 accumulated; an epoch is 25 steps"
    )
    trainer.num_training_batches = float("inf")
    assert describe_batch(trainer, 3).endswith("4 accumulated")  # type: ignore[arg-type]


def count_both() -> tuple[float | None, float, bool]:
    """Operations per image as the watcher has them, of a real pass, and whether a gradient was left."""
    prior = random_prior()
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(guidance=("canny",), image=True))
    conditions = network.conditions(inputs["lq_up"], inputs["semantics"], inputs["maps"])
    operations = OperationCount()
    operations.watch(network)
    network(inputs["z_t"], inputs["timesteps"], conditions)
    left = any(p.grad is not None for p in network.parameters())
    with FlopCounterMode(display=False) as counter:
        conditions = network.conditions(inputs["lq_up"], inputs["semantics"], inputs["maps"])
        network(inputs["z_t"], inputs["timesteps"], conditions).square().mean().backward()
    return operations.per_image, counter.get_total_flops() / 2, left


def test_operations_are_those_of_a_real_pass_and_leave_no_gradient() -> None:
    """In a process of its own: after a backward pass without numbers, autograd does not let this one fork any more."""
    ((counted, real, left_a_gradient),) = run_ranks(1, count_both)
    assert counted == real > 0
    assert not left_a_gradient


def test_rates_are_per_device_and_mfu_is_of_a_known_peak() -> None:
    operations = OperationCount()
    assert operations.rates(10.0, 2, torch.device("cpu"), torch.float32) == {}
    operations.per_image = 3e12
    rates = operations.rates(10.0, 2, torch.device("cpu"), torch.float32)
    assert rates == {"train/tflops_per_device": pytest.approx(15.0)}
