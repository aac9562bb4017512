"""Real-ESRGAN's own training degradation, run from its checkouts for comparison. Nothing of theirs is changed on disk.

Three things are bent in memory so that their code runs with today's libraries: a torchvision module that has gone, the
version files that their installers write, and a filter that is handed contiguous tensors.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision.transforms.functional as vision
import yaml

CHECKOUTS = ("BASICSR_DIR", "REALESRGAN_DIR")
OPTIONS = "options/train_realesrnet_x4plus.yml"


def missing_checkouts() -> list[str]:
    """The environment variables that do not name a folder: checkouts of XPixelGroup/BasicSR and xinntao/Real-ESRGAN."""
    return [name for name in CHECKOUTS if not Path(os.environ.get(name) or "missing").is_dir()]


class RealESRGAN:
    """Their feed_data on batches of one photograph, with the options of x4plus.

    Args:
        photo: (H, W, 3) uint8 RGB, square.
        device: where their model lives.
        kernels: how many sets of blur kernels are drawn beforehand.
        seed: of the kernels, and of what follows.
    """

    def __init__(self, photo: np.ndarray, device: torch.device, kernels: int = 64, seed: int = 0) -> None:
        self.model_class, self.jpeg, self.usm, dataset = _import_theirs()
        options: dict[str, Any] = yaml.safe_load((Path(os.environ["REALESRGAN_DIR"]) / OPTIONS).read_text())
        self.size, self.device = photo.shape[0], device
        self.options = options | {"gt_size": self.size, "high_order_degradation": True}
        self.hq = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
        train = options["datasets"]["train"]
        with tempfile.TemporaryDirectory() as folder:
            cv2.imwrite(f"{folder}/photo.png", photo[..., ::-1])
            (Path(folder) / "list.txt").write_text("photo.png\n")
            places = {"dataroot_gt": folder, "meta_info": f"{folder}/list.txt", "io_backend": {"type": "disk"}}
            drawn = dataset(train | places | {"gt_size": self.size, "phase": "train"})
            seed_theirs(seed)
            self.kernels = [_kernels(drawn[0]) for _ in range(kernels)]

    def batch(self, number: int, size: int) -> dict[str, torch.Tensor]:
        """What their loader would hand to feed_data: hq and kernels, drawn beforehand (their workers' share)."""
        picked = [self.kernels[(number * size + i) % len(self.kernels)] for i in range(size)]
        stacked = {name: torch.stack([sample[name] for sample in picked]) for name in picked[0]}
        return stacked | {"gt": self.hq.expand(size, -1, -1, -1)}

    def degrade(self, batch_size: int, sharpen: bool) -> Callable[[dict[str, torch.Tensor]], None]:
        """Their feed_data, with the target sharpened or not."""
        model = object.__new__(self.model_class)
        model.opt, model.is_train, model.device = self.options | {"gt_usm": sharpen}, True, self.device
        model.queue_size = batch_size
        model.jpeger = self.jpeg(differentiable=False).to(self.device)
        model.usm_sharpener = self.usm().to(self.device)
        model._dequeue_and_enqueue = lambda: None  # their pool of earlier samples is no part of a degradation
        feed: Callable[[dict[str, torch.Tensor]], None] = model.feed_data
        return feed


def seed_theirs(seed: int) -> None:
    """They draw from the global generators, which nothing of this project does."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def _kernels(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: sample[name] for name in ("kernel1", "kernel2", "sinc_kernel")}


def _import_theirs() -> tuple[Any, Any, Any, Any]:
    grey = types.ModuleType("torchvision.transforms.functional_tensor")
    grey.rgb_to_grayscale = vision.rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules[grey.__name__] = grey
    for name, package in zip(CHECKOUTS, ("basicsr", "realesrgan"), strict=True):
        sys.path.insert(0, os.environ[name])
        version = types.ModuleType(f"{package}.version")
        version.__version__, version.__gitsha__ = "0", "0"  # type: ignore[attr-defined]
        sys.modules[version.__name__] = version
    processing: Any = importlib.import_module("basicsr.utils.img_process_util")
    model: Any = importlib.import_module("realesrgan.models.realesrnet_model")
    filter_2d = processing.filter2D

    def contiguous(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return filter_2d(image.contiguous(), kernel)

    processing.filter2D = model.filter2D = contiguous
    utils = importlib.import_module("basicsr.utils")
    dataset = importlib.import_module("realesrgan.data.realesrgan_dataset").RealESRGANDataset
    return model.RealESRNetModel, utils.DiffJPEG, utils.USMSharp, dataset
