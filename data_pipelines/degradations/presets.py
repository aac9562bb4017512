"""Degradations by name, with the numbers that the field trains with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from data_pipelines.degradations.high_order import HighOrder
from data_pipelines.degradations.pipeline import Bicubic, Degradation
from data_pipelines.degradations.sampling import Blur, Jpeg, Noise, Order, Resize
from megasr.errors import UsageError, unknown_name

SCALE_FACTORS = (2, 3, 4, 8)


def _none(scale_factor: int) -> Degradation:
    if scale_factor != 1:
        raise UsageError(f"degradation 'none' leaves the size as it is: it needs scale_factor 1, got {scale_factor}")
    return Bicubic(1, name="none")


def _realesrgan_strong(scale_factor: int) -> Degradation:
    """Real-ESRGAN x4plus, section 4.1, with SeeSR's q >= 30 in both orders (utils_data/make_paired_data.py)."""
    first = Order(
        Blur(sigma=(0.2, 3.0), beta_generalized=(0.5, 4.0), beta_plateau=(1.0, 2.0)),
        Noise(sigma=(1, 30), poisson_scale=(0.05, 3.0)),
        Jpeg((30, 95)),
        Resize(up=0.2, down=0.7, scales=(0.15, 1.5)),
    )
    second = Order(
        replace(first.blur, sigma=(0.2, 1.5), probability=0.8),
        Noise(sigma=(1, 25), poisson_scale=(0.05, 2.5)),
        Jpeg((30, 95)),
        Resize(up=0.3, down=0.4, scales=(0.3, 1.2)),
    )
    return HighOrder("realesrgan_strong", scale_factor, (first, second))


def _stablesr_mild(scale_factor: int) -> Degradation:
    """StableSR's, which also made DIV2K-Val (its params_realesrgan.yml and configs/stableSRdata)."""
    first = Order(
        Blur(sigma=(0.2, 1.5), beta_generalized=(0.5, 2.0), beta_plateau=(1.0, 1.5)),
        Noise(sigma=(1, 15), poisson_scale=(0.05, 2.0)),
        Jpeg((60, 95)),
        Resize(up=0.2, down=0.7, scales=(0.3, 1.5)),
    )
    second = Order(
        replace(first.blur, sigma=(0.2, 1.0), probability=0.5),
        Noise(sigma=(1, 12), poisson_scale=(0.05, 1.0)),
        Jpeg((60, 100)),
        Resize(up=0.3, down=0.4, scales=(0.6, 1.2)),
    )
    return HighOrder("stablesr_mild", scale_factor, (first, second), untouched_probability=0.01)


def _first_order(scale_factor: int) -> Degradation:
    """The classical degradation (2107.10833, eq. 1) with the numbers of realesrgan_strong's first order."""
    order = Order(
        Blur(sigma=(0.2, 3.0), beta_generalized=(0.5, 4.0), beta_plateau=(1.0, 2.0)),
        Noise(sigma=(1, 30), poisson_scale=(0.05, 3.0)),
        Jpeg((30, 95)),
    )
    return HighOrder("first_order", scale_factor, (order,))


PRESETS: dict[str, Callable[[int], Degradation]] = {
    "bicubic": Bicubic,
    "first_order": _first_order,
    "none": _none,
    "realesrgan_strong": _realesrgan_strong,
    "stablesr_mild": _stablesr_mild,
}


def get_degradation(name: str, scale_factor: int) -> Degradation:
    """Build a preset.

    Args:
        name: name of the preset.
        scale_factor: size of hq over size of lq: 2, 3, 4 or 8; 1 for `none`.

    Raises:
        UsageError: there is no such preset (shows the nearest names), or it does not do this scale factor.
    """
    if name not in PRESETS:
        raise unknown_name("degradation", name, PRESETS)
    if name != "none" and scale_factor not in SCALE_FACTORS:
        raise UsageError(
            f"degradation {name!r} does scale_factor {', '.join(map(str, SCALE_FACTORS))}, got {scale_factor}"
        )
    return PRESETS[name](scale_factor)
