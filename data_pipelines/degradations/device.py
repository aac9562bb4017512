"""The `device` back end: a batch of tensors on any device, every sample with its own operations, in torch alone.

The same operations, numbers and noise as the `cpu` back end. After the first resize every image has a size of its own,
so images are a list, and an operation is a few kernels per image at its exact size; only JPEG, which is many small
steps, joins the blocks of all images. Padding the batch to its largest image instead would triple the work, and would
make an image's bits depend on its neighbours. Nothing here waits for the device: numbers that are drawn travel as
arguments of the kernels, kernels and tables through pinned memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np
import torch

from data_pipelines.degradations.device_blur import convolve
from data_pipelines.degradations.device_context import exact, upload
from data_pipelines.degradations.device_jpeg import compress
from data_pipelines.degradations.device_resize import resize
from data_pipelines.degradations.kernels import make_kernel, trim
from data_pipelines.degradations.noise import BANK_SIZE, NUM_QUANTILES, normal_bank, poisson_table, quantile_bank
from data_pipelines.degradations.sampling import Op
from megasr.errors import UsageError
from megasr.images import quantise

# BT.601 luma of the full range, as OpenCV turns colour into grey.
_GREY = (0.299, 0.587, 0.114)


def apply_ops_batched(hq: torch.Tensor, ops: Sequence[Sequence[Op | None]]) -> torch.Tensor:
    """Degrade a batch. A sample's lq does not depend on the other samples.

    Args:
        hq: (B, 3, H, W) RGB in [0, 1].
        ops: one list per sample, see data_pipelines.degradations.sampling; None is left out.

    Returns:
        (B, 3, h, w) float32 in [0, 1], at 8-bit levels, on the device of hq.

    Raises:
        UsageError: there is not one list per sample, or they end in different sizes.
    """
    if len(ops) != len(hq):
        raise UsageError(f"{len(hq)} images need as many lists of operations, got {len(ops)}")
    with exact(hq.device):
        images = list(hq.float().unbind(0))
        for slot in zip_longest(*ops):
            images = _apply_slot(images, slot, hq.shape[-2], hq.shape[-1])
        sizes = sorted({(image.shape[-1], image.shape[-2]) for image in images})
        if len(sizes) > 1:
            shown = ", ".join(f"{width}x{height}" for width, height in sizes)
            raise UsageError(f"the lq of one batch must be of one size; these parameters make {shown} px")
        return quantise(torch.stack(images))


def _apply_slot(
    images: list[torch.Tensor], slot: Sequence[Op | None], hq_height: int, hq_width: int
) -> list[torch.Tensor]:
    """One operation, or none, for each image; they may be different ones."""
    places: dict[str, list[int]] = {}
    for place, op in enumerate(slot):
        if op is not None:
            places.setdefault(op["op"], []).append(place)
    images = list(images)
    for name, at in places.items():
        chosen, ops = [images[i] for i in at], [op for i in at if (op := slot[i]) is not None]
        if name == "resize":
            done = [resize(image, op, hq_height, hq_width) for image, op in zip(chosen, ops, strict=True)]
        else:
            done = _OPERATIONS[name](chosen, ops)
        for i, image in zip(at, done, strict=True):
            images[i] = image
    return images


def _blur(images: list[torch.Tensor], ops: list[Op]) -> list[torch.Tensor]:
    kernels = [trim(make_kernel(op)) for op in ops]
    flat = upload(np.concatenate([kernel.reshape(-1) for kernel in kernels]).astype(np.float32), images[0].device)
    taps = flat.split([kernel.size for kernel in kernels])
    return [
        convolve(image, values.view(kernel.shape)) for image, values, kernel in zip(images, taps, kernels, strict=True)
    ]


def _gaussian_noise(images: list[torch.Tensor], ops: list[Op]) -> list[torch.Tensor]:
    bank = _normal_bank(images[0].device)
    return [
        torch.add(image, _stretch(bank, op, image), alpha=op["sigma"] / 255).clamp_(0, 1)
        for image, op in zip(images, ops, strict=True)
    ]


def _poisson_noise(images: list[torch.Tensor], ops: list[Op]) -> list[torch.Tensor]:
    return [_photons(image, op) for image, op in zip(images, ops, strict=True)]


def _photons(image: torch.Tensor, op: Op) -> torch.Tensor:
    """See cpu.poisson_noise."""
    bank, table = _poisson_tables(image.device)
    seen = sum(w * image[i : i + 1] for i, w in enumerate(_GREY)) if op["grey"] else image
    levels = torch.as_tensor(seen * 255).round_().clamp_(0, 255).to(torch.int32)
    index = levels.mul_(NUM_QUANTILES).add_(_stretch(bank, op, image))
    noise = table.index_select(0, index.reshape(-1)).view(index.shape)
    return torch.add(image, noise, alpha=op["scale"]).clamp_(0, 1)


def _stretch(bank: torch.Tensor, op: Op, image: torch.Tensor) -> torch.Tensor:
    """noise.stretch as (1 or 3, H, W) RGB: there it is (H, W) or (H, W, 3) BGR."""
    channels, (height, width) = 1 if op["grey"] else 3, image.shape[-2:]
    count, start = channels * height * width, op["offset"] % BANK_SIZE
    if count > BANK_SIZE:
        bank, start = bank[:BANK_SIZE].roll(-start).repeat(-(-count // BANK_SIZE)), 0
    return bank[start : start + count].view(height, width, channels).permute(2, 0, 1).flip(0)


@functools.cache
def _normal_bank(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(normal_bank()).to(device)


@functools.cache
def _poisson_tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    quantiles = torch.from_numpy(quantile_bank().astype(np.int16))  # torch knows little of unsigned 16-bit integers
    return quantiles.to(device), torch.from_numpy(poisson_table()).to(device)


def _jpeg(images: list[torch.Tensor], ops: list[Op]) -> list[torch.Tensor]:
    # A processor's caches hold one image's blocks, not a batch's; any other device wants few large steps.
    at_once = 1 if images[0].device.type == "cpu" else len(images)
    done: list[torch.Tensor] = []
    for start in range(0, len(images), at_once):
        part = slice(start, start + at_once)
        done += compress(images[part], [op["quality"] for op in ops[part]])
    return done


_OPERATIONS: dict[str, Callable[[list[torch.Tensor], list[Op]], list[torch.Tensor]]] = {
    "blur": _blur,
    "gaussian_noise": _gaussian_noise,
    "poisson_noise": _poisson_noise,
    "jpeg": _jpeg,
}
