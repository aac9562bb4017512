"""What a call of the pipeline may ask for, checked and completed by what the adapter was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from megasr.errors import UsageError, unknown_name
from megasr.inference.tiling import Tiling

if TYPE_CHECKING:
    from megasr.training.config import SamplerConfig

PRESETS = {"quality": 50, "balanced": 20, "fast": 8}  # steps


def change_sampler(
    trained: SamplerConfig,
    steps: int | None,
    preset: str | None,
    guidance_scale: float | None,
    negative_prompt: str | None,
) -> SamplerConfig:
    """The sampler with what is asked for; None leaves it as it is.

    Raises:
        UsageError: a preset is unknown, or given beside a number of steps.
    """
    if preset is not None:
        if steps is not None:
            raise UsageError(f"num_inference_steps={steps} and preset={preset!r}: give one of them")
        if preset not in PRESETS:
            raise unknown_name("preset", preset, PRESETS)
        steps = PRESETS[preset]
    wanted = {"num_steps": steps, "guidance_scale": guidance_scale, "negative_prompt": negative_prompt}
    return replace(trained, **{name: value for name, value in wanted.items() if value is not None})  # type: ignore[arg-type]


def spread_prompts(prompt: str | Sequence[str], count: int, uses_text: bool) -> list[str]:
    """One prompt per image.

    Raises:
        UsageError: there is another number of them, or words that the adapter does not read.
    """
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(prompts) != count:
        raise UsageError(f"prompt: {len(prompts)} for {count} images; give one for all, or one per image")
    if any(prompts) and not uses_text:
        raise UsageError("prompt: the adapter was trained without text, words do nothing")
    return prompts


def name_images(keys: Sequence[str] | None, count: int) -> list[str]:
    """One name per image: "image", or "image0", "image1", ... where none are given.

    Raises:
        UsageError: there is another number of them.
    """
    if keys is None:
        return ["image"] if count == 1 else [f"image{number}" for number in range(count)]
    if isinstance(keys, str) or len(keys) != count:
        raise UsageError(f"keys: {keys!r} for {count} images; give a list with one name per image")
    return list(keys)


def choose_seed(seed: int | None, generator: torch.Generator | None, trained: int) -> int:
    """The seed, one that the generator draws, or the training's.

    Raises:
        UsageError: both are given.
    """
    if generator is None:
        return trained if seed is None else seed
    if seed is not None:
        raise UsageError(f"seed={seed} and a generator: give one of them")
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def check_scale(scale_factor: float) -> float:
    """The size of sr over size of lq.

    Raises:
        UsageError: it is not a number above 0.
    """
    if not 0 < scale_factor < float("inf"):
        raise UsageError(f"scale_factor must be above 0, got {scale_factor}")
    return scale_factor


def choose_tile(asked: int | None, native_px: int | None) -> int | None:
    """Px of the tiles in which the commands restore, None for whole images.

    Args:
        asked: by the user; 0 is whole, None the prior's own size: better than the whole on the tiny prior (README), and
            attention's time grows with the square of the pixels.
        native_px: see Prior.
    """
    return native_px if asked is None else asked or None


def choose_tiling(tile: int | None, overlap: int | None) -> Tiling | None:
    """How an image is cut, None when it is not.

    Raises:
        UsageError: a size cannot be used, or an overlap is given without tiles.
    """
    if tile is None and overlap is not None:
        raise UsageError(f"tile_overlap={overlap} does nothing without tile")
    return None if tile is None else Tiling(tile, overlap)
