"""Extractors: networks that make guidance maps. Their interface, and how their checkpoints are read and written."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from megasr.configs import read_config
from megasr.errors import MegaSRError, UsageError
from megasr.files import read_safetensors, read_saved, write_whole
from megasr.guidance.onnx_weights import read_convolutions
from megasr.weights import require

Size = tuple[int, int]  # height, width


class Views:
    """An image at the sizes that extractors ask for; each is computed once, however many share it.

    Args:
        image: (B, 3, H, W) float32 in [0, 1].
    """

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image
        self._resized: dict[Size, torch.Tensor] = {self.size: image}

    @property
    def size(self) -> Size:
        """(H, W) of the image itself."""
        return self.image.shape[-2], self.image.shape[-1]

    def at(self, size: Size) -> torch.Tensor:
        """The image at another size (bicubic, antialiased when it shrinks), (B, 3, h, w) in [0, 1]."""
        if size not in self._resized:
            resized = F.interpolate(self.image, size, mode="bicubic", antialias=True, align_corners=False)
            self._resized[size] = resized.clamp(0, 1)
        return self._resized[size]


def fit_size(size: Size, shorter_px: int, multiple: int) -> Size:
    """The size of about the same aspect whose shorter side is about `shorter_px`; both are multiples, one at least."""
    scale = shorter_px / min(size)
    height, width = (max(1, round(side * scale / multiple)) * multiple for side in size)
    return height, width


class MapNetwork(nn.Module):
    """An extractor: a network that makes one or several kinds of maps of an image.

    Attributes:
        gives: names of the guidance types that it makes.
        outputs: those of them that have a raw output; the others are computed from it (normals from depth).
        smallest_px: the least height and width of an image that it can work on.
        relative_depth: scale and shift of its inverse depth mean nothing.
    """

    gives: tuple[str, ...]
    outputs: tuple[str, ...]
    smallest_px: int = 1
    relative_depth: bool = True

    def encode(self, views: Views) -> tuple[torch.Tensor, ...]:
        """The representation: feature maps of the encoder, fine to coarse."""
        raise NotImplementedError

    def decode(self, representation: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Raw outputs (logits, inverse depth) that the maps of these types need."""
        raise NotImplementedError

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """Maps of these types, (B, C, *size) float32 in [0, 1]."""
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        """Write the extractor in the format that it is loaded from."""
        raise NotImplementedError

    def forward(self, views: Views, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Maps of these types at the size of the image, from one pass through the encoder."""
        return self.finish(self.decode(self.encode(views), names), names, views.size)

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes; maps are float32 always."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """On which it computes; maps stay there."""
        return next(self.parameters()).device

    def freeze(self) -> Self:
        """No gradients, evaluation mode. Returns itself."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """A frozen extractor stays in evaluation mode whatever Lightning asks for."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def check_size(self, size: Size) -> None:
        """Refuse an image with a side below `smallest_px`. Raises UsageError."""
        if min(size) < self.smallest_px:
            raise UsageError(
                f"guidance {'/'.join(self.gives)}: images must be {self.smallest_px} px or more in height and width, "
                f"got {size[0]} x {size[1]}"
            )


_READERS: dict[str, Callable[[Path], Any]] = {".safetensors": read_safetensors, ".onnx": read_convolutions}
# Where a file that holds more than a state dict has it, the preferred one first (of BasicSR, and of many others).
_INSIDE = ("params_ema", "params", "state_dict")
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What checkpoints may lack, since no map depends on it: masked pre-training's token and Mask2Former's training loss.
_UNUSED = re.compile(r"(^|\.)mask_token$|^criterion\.")


def find_checkpoint(source: str) -> Path:
    """The file or folder of a source: a path that exists, a name of the weights manifest, or a hub id.

    Raises:
        MegaSRError: it is not on this machine.
    """
    path = Path(os.path.expanduser(source))
    return path if path.exists() else require(source)


def read_state_dict(source: str, what: str, names: tuple[str, ...]) -> tuple[Path, dict[str, torch.Tensor]]:
    """The weight file of a source (in a folder the first of `names` that is there), and its tensors in float32.

    Raises:
        MegaSRError: it is not on this machine, cannot be read, or holds something else.
    """
    path = find_checkpoint(source)
    if path.is_dir():
        files = [path / name for name in names if (path / name).is_file()]
        if not files:
            raise MegaSRError(f"{what} {source!r}: {path} has neither {' nor '.join(names)}")
        path = files[0]
    try:
        state: Any = _READERS.get(path.suffix, read_saved)(path)
    except Exception as error:  # each format has errors of its own, and a truncated file can raise any of them
        raise MegaSRError(f"{what} {path} cannot be read: {one_line(error)}") from error
    if isinstance(state, Mapping):  # what a training wrote keeps its step or other weights beside them
        state = next((state[name] for name in _INSIDE if isinstance(state.get(name), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise MegaSRError(f"{what} {path} cannot be used: it is not a state dict of tensors")
    # DataParallel names the network that it holds `module`.
    return path, {str(name).removeprefix("module."): value.float() for name, value in state.items()}


def fill(network: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Give a network (built on the meta device) its weights: every one, of the right shape, and no others.

    Raises:
        MegaSRError: they do not fit; `what` names the network and the file.
    """
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise MegaSRError(f"{what} cannot be used: {one_line(error)}") from error


def write_state_dict(network: nn.Module, path: Path) -> None:
    """Write the weights as float32 safetensors, whole or not at all.

    Raises:
        MegaSRError: the place cannot be written to.
    """
    from safetensors.torch import save

    write_whole(path, save({k: v.detach().float().cpu().contiguous() for k, v in network.state_dict().items()}))


@dataclass(frozen=True)
class Preprocessing:
    """What the images of a transformers network go through, from its preprocessor_config.json.

    Attributes:
        shorter_px: the shorter side of the image that the network sees.
        mean, std: per channel, of images in [0, 1].
        content: the whole file, to be written beside an exported network; None when there was none.
    """

    shorter_px: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    content: dict[str, Any] | None = None

    def prepare(self, views: Views, multiple: int) -> torch.Tensor:
        """The normalised image, (B, 3, h, w) float32 with the aspect kept; h and w are multiples.

        Per channel: a buffer would be cast with the network's weights, and a new tensor copied to the device each time.
        """
        image = views.at(fit_size(views.size, self.shorter_px, multiple)).float()
        scaled = zip(image.unbind(1), self.mean, self.std, strict=True)
        return torch.stack([(channel - mean) / std for channel, mean, std in scaled], 1)


def read_preprocessing(folder: Path, what: str, default_px: int) -> Preprocessing:
    """A folder's preprocessing; ImageNet's normalisation and `default_px` stand in for what it does not say.

    Raises:
        MegaSRError: the file cannot be understood.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return Preprocessing(default_px)
    try:
        content = json.loads(path.read_text())
        size = content.get("size", default_px)
        if isinstance(size, dict):
            size = size["shortest_edge"] if "shortest_edge" in size else min(size["height"], size["width"])
        mean = tuple(map(float, content.get("image_mean", IMAGENET_MEAN)))
        std = tuple(map(float, content.get("image_std", IMAGENET_STD)))
        if not content.get("do_normalize", True):
            mean, std = (0.0,) * 3, (1.0,) * 3
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or int(size) < 1:
            raise ValueError(f"size {size}, image_mean {mean}, image_std {std}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MegaSRError(f"{what}: {path} cannot be used: {one_line(error)}") from error
    return Preprocessing(int(size), mean, std, content)


def load_transformers(source: str, what: str, architectures: Iterable[str]) -> tuple[Path, Any]:
    """The folder of a transformers checkpoint, and its model in float32 with every weight from the folder.

    Raises:
        MegaSRError: it is not on this machine, is of none of these architectures, or lacks weights.
    """
    import transformers

    folder = find_checkpoint(source)
    try:
        architecture = read_config(folder / CONFIG)["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise MegaSRError(f"{what} {source!r}: {folder} is no transformers folder: {one_line(error)}") from error
    if architecture not in architectures:
        raise MegaSRError(f"{what} {source!r} in {folder} is a {architecture}; needed: {' or '.join(architectures)}")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        # The library draws initial weights before it loads the real ones: nobody else's draws may move by that.
        with torch.random.fork_rng(devices=[]):
            model, loaded = getattr(transformers, architecture).from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # it reports them, and they are refused below
                output_loading_info=True,
            )
    except Exception as error:  # OSError, SafetensorError, UnpicklingError, ...: a broken file can raise anything
        raise MegaSRError(f"{what} in {folder} cannot be read: {one_line(error)}") from error
    missing = [name for name in loaded["missing_keys"] if not _UNUSED.search(name)]
    missing = sorted([*missing, *(str(key[0]) for key in loaded["mismatched_keys"])])
    if missing:
        raise MegaSRError(f"{what} in {folder} lacks weights, or has others of their shape: {', '.join(missing[:3])}")
    return folder, model


def save_transformers(model: Any, preprocessing: Preprocessing, folder: Path) -> None:
    """Write a transformers model and its preprocessing as a folder that load_transformers reads.

    Raises:
        MegaSRError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        # Without the folders of this machine that the parts were loaded from.
        without_paths = json.loads((folder / CONFIG).read_text(), object_hook=_without_path)
    except OSError as error:
        raise MegaSRError(f"cannot write {folder}: {error.strerror or error}") from error
    write_whole(folder / CONFIG, (json.dumps(without_paths, indent=2) + "\n").encode())
    if preprocessing.content is not None:
        write_whole(folder / PREPROCESSOR, (json.dumps(preprocessing.content, indent=2) + "\n").encode())


def _without_path(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "_name_or_path"}


def one_line(error: Exception) -> str:
    """Another library's message, short enough for one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
