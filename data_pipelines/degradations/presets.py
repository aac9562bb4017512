"""Degradations by name."""

from __future__ import annotations

from collections.abc import Callable

from data_pipelines.degradations.pipeline import Bicubic, Degradation
from megasr.errors import UsageError, unknown_name


def _none(scale_factor: int) -> Degradation:
    if scale_factor != 1:
        raise UsageError(f"degradation 'none' leaves the size as it is: it needs scale_factor 1, got {scale_factor}")
    return Bicubic(1)


PRESETS: dict[str, Callable[[int], Degradation]] = {"bicubic": Bicubic, "none": _none}


def get_degradation(name: str, scale_factor: int) -> Degradation:
    """Build a preset.

    Args:
        name: name of the preset.
        scale_factor: size of hq over size of lq, at least 1.

    Raises:
        UsageError: there is no such preset (shows the nearest names), or it does not do this scale factor.
    """
    if name not in PRESETS:
        raise unknown_name("degradation", name, PRESETS)
    if scale_factor < 1:
        raise UsageError(f"scale_factor must be at least 1, got {scale_factor}")
    return PRESETS[name](scale_factor)
