"""How much of a restoration is done, told from the pipeline's callback after every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[float], None]  # the share of the steps that is done, from 0 to 1


def no_progress(share: float) -> None:
    """Nobody wants to know."""


def tell_share(progress: Progress) -> Callable[..., None]:
    """A callback_on_step_end that tells `progress`. Timesteps fall to 0: it need not know how many there are."""
    first = 0

    def callback(pipeline: Any, step: int, timestep: int, latents: dict[str, Any]) -> None:
        nonlocal first
        first = first or timestep
        progress(1 - timestep / max(first, 1))

    return callback
