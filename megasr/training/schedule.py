"""The learning rate as a share of its peak."""

from __future__ import annotations

from megasr.errors import UsageError


def trapezoid(step: int, steps: float, warmup_steps: int, decay_share: float) -> float:
    """Up in a line, level, and down in a line to 0 over the last part (warmup-stable-decay, 2404.06395).

    Until the decay it does not depend on the length of training: a longer one can go on from a checkpoint.

    Args:
        step: from 0.
        steps: of the whole training; may be infinite when decay_share is 0.
        warmup_steps: of the way up; the first step already moves.
        decay_share: share of all steps that the way down takes, in [0, 1]; 0 is none.

    Raises:
        UsageError: a training without an end cannot decay.
    """
    rising = (step + 1) / max(1, warmup_steps)
    if decay_share == 0:
        return min(1.0, rising)
    if steps == float("inf"):
        raise UsageError("optimizer.decay_share counts from the end: set trainer.max_steps or trainer.max_epochs")
    return max(0.0, min(1.0, rising, (steps - step) / (decay_share * steps)))
