"""The learning rate: up, level, down."""

import math

import pytest

from megasr.errors import UsageError
from megasr.training.config import OptimizerConfig
from megasr.training.module import trapezoid
from tests.helpers.training import fit, make_batch, make_module


def test_a_trapezoid_may_be_made_longer():
    short, long = ([trapezoid(step, steps, 100, 0.2) for step in range(steps)] for steps in (1000, 4000))
    assert short[:800] == long[:800]
    assert short[0] == 0.01 and short[99] == short[800] == 1.0
    assert short[900] == long[3600] == pytest.approx(0.5)
    assert 0 < short[-1] < 0.01


def test_without_a_decay_it_needs_no_end():
    assert [trapezoid(step, math.inf, 2, 0.0) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert trapezoid(0, math.inf, 0, 0.0) == 1.0
    with pytest.raises(UsageError, match="decay_share counts from the end: set trainer.max_steps"):
        trapezoid(0, math.inf, 0, 0.5)


def test_the_rate_of_a_training_falls_to_nothing():
    module = make_module(optimizer=OptimizerConfig(learning_rate=1e-3, decay_share=0.5))
    rates = []
    step = module.training_step
    module.training_step = lambda *a: (rates.append(module.optimizers().param_groups[0]["lr"]), step(*a))[1]
    fit(module, make_batch(), 4)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 0.5e-3])


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UsageError, match=rf"optimizer.decay_share must be in \[0, 1\], got {share}"):
        OptimizerConfig(decay_share=share)
