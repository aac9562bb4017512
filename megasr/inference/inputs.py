"""Images as people have them: PIL images, arrays or tensors in, the same kinds out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image

from megasr.batch import check_range, extremes
from megasr.errors import UsageError, unknown_name
from megasr.images import from_uint8, to_uint8

AnyImage: TypeAlias = Image.Image | np.ndarray | torch.Tensor
OutputType = Literal["pil", "pt", "np"]
_ROWS = 256


def to_tensors(image: AnyImage | Sequence[AnyImage]) -> list[torch.Tensor]:
    """Every image as lq (3, h, w) float32 in [0, 1] on the CPU.

    Args:
        image: a PIL image of any mode (converted to RGB: an alpha channel is dropped), an array (h, w, 3) uint8, a
            tensor (3, h, w) or (B, 3, h, w) in [0, 1], or a list of these, whose sizes may differ.

    Raises:
        UsageError: there is no image, or one is of another kind, shape or range.
    """
    if isinstance(image, torch.Tensor) and image.ndim == 4:
        image = list(image)
    if not isinstance(image, Sequence):
        return [_to_tensor(image, "image")]
    if not image:
        raise UsageError("image: the list is empty, there is nothing to restore")
    return [_to_tensor(one, f"image {number}") for number, one in enumerate(image)]


def _to_tensor(image: Any, name: str) -> torch.Tensor:
    if isinstance(image, Image.Image):
        lq = from_uint8(np.asarray(image.convert("RGB")))
    elif isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UsageError(f"{name}: an array must be (h, w, 3) uint8 RGB, got {image.dtype} of shape {image.shape}")
        lq = from_uint8(image)
    elif isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            shape = tuple(image.shape)
            raise UsageError(f"{name}: a tensor must be float RGB (3, h, w) in [0, 1], got {image.dtype} of {shape}")
        lq = image.detach().float().cpu()
    else:
        raise UsageError(
            f"{name}: expected a PIL image, an array, a tensor or a list of these, got {type(image).__name__}"
        )
    if lq.numel() == 0:
        raise UsageError(f"{name}: has no pixels, its shape is {tuple(lq.shape)}")
    check_range(extremes(lq), name)
    return lq


def _to_array(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3) uint8, a few rows at a time: of a large image the whole in float32 once more is much."""
    array = np.empty((*image.shape[1:], 3), np.uint8)
    for top in range(0, len(array), _ROWS):
        array[top : top + _ROWS] = to_uint8(image[:, top : top + _ROWS])
    return array


def check_output_type(kind: str) -> None:
    """Refuse kinds that are not known.

    Raises:
        UsageError: shows those that are.
    """
    if kind not in get_args(OutputType):
        raise unknown_name("output_type", kind, get_args(OutputType))


def to_output(
    images: list[torch.Tensor], kind: OutputType
) -> list[Image.Image] | list[Any] | torch.Tensor | np.ndarray:
    """Images (3, H, W) in [0, 1] as PIL images, or as one tensor or array where all have one size, else a list."""
    same_size = len({image.shape for image in images}) == 1
    if kind == "pt":
        return torch.stack(images) if same_size else images
    arrays = [_to_array(image) for image in images]
    if kind == "pil":
        return [Image.fromarray(array) for array in arrays]
    return np.stack(arrays) if same_size else arrays
