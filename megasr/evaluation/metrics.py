"""How the metrics of a protocol are computed, and where their weights are found.

pyiqa downloads weights in the middle of an evaluation. Here a metric is built only when every file is on this machine,
so nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import torch
from torch import nn

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.protocol import MetricSpec, Protocol
from megasr.files import file_sha256
from megasr.weights import Weight, find_local
from megasr.weights.manifest import METRIC_WEIGHTS

FILES: Mapping[str, Weight] = {weight.name: weight for weight in METRIC_WEIGHTS}
_SHORTEST = 8  # hexadecimal digits of a sha256 that a publisher puts into a file's name


def find_weight(name: str, weights_dir: Path | None = None) -> Path | None:
    """The local copy of a file of FILES: below `weights_dir`, else where `find_local` finds it; None when absent.

    A repository is looked for in the Hugging Face cache only: that is where timm reads it.
    """
    if FILES[name].place != "hub" and weights_dir is not None and (copies := sorted(weights_dir.rglob(name))):
        return copies[0]
    return find_local(name)


def source_of(name: str) -> str:
    """Where a file of FILES can be had."""
    return f"`hf download {name}`" if FILES[name].place == "hub" else FILES[name].mirrors[0]


def missing_files(names: Sequence[str], weights_dir: Path | None = None) -> list[str]:
    """Those of these files that are not on this machine."""
    return [name for name in names if find_weight(name, weights_dir) is None]


def describe_missing(names: Sequence[str], weights_dir: Path | None = None) -> str:
    """Which of these files are missing and where each can be had; empty when all are here. Names no local folder."""
    missing = missing_files(names, weights_dir)
    return "lacks " + ", ".join(f"{name} ({source_of(name)})" for name in missing) if missing else ""


@contextlib.contextmanager
def found_weights(names: Sequence[str], weights_dir: Path | None = None) -> Iterator[None]:
    """Inside, pyiqa and torchvision find exactly these files. All of them must be on this machine."""
    from pyiqa.archs import afineclip_model, clip_model, liqe_arch
    from pyiqa.utils import download_util

    with TemporaryDirectory(prefix="megasr-weights-") as folder:
        for name in names:
            file, place = find_weight(name, weights_dir), FILES[name].place
            if place != "hub" and file is not None:
                (Path(folder) / place).mkdir(exist_ok=True)
                for spelt in {name, quote(name)}:  # pyiqa keeps the + of an address as %2B in the file's name
                    os.symlink(file.resolve(), Path(folder) / place / spelt)

        def local_clip(url: str, root: str) -> str:
            """In place of CLIP's download, which fetches again what has another sha256."""
            return str(Path(folder, "clip", url.rsplit("/", 1)[-1]))

        # pyiqa fixes its folder when it is imported, and most of its networks take no path of their weights.
        pyiqa_folder = str(Path(folder) / "pyiqa")
        changes: list[tuple[Any, str, Any]] = [(m, "_download", local_clip) for m in (afineclip_model, clip_model)]
        changes += [(m, "DEFAULT_CACHE_DIR", pyiqa_folder) for m in (download_util, liqe_arch)]
        before = torch.hub.get_dir(), [getattr(module, name) for module, name, _ in changes]
        torch.hub.set_dir(folder)
        for module, name, value in changes:
            setattr(module, name, value)
        try:
            yield
        finally:
            torch.hub.set_dir(before[0])
            for (module, name, _), value in zip(changes, before[1], strict=True):
                setattr(module, name, value)


def weight_hashes(names: Sequence[str], weights_dir: Path | None = None) -> dict[str, str]:
    """The beginning of the sha256 of every file, or the revision of a repository; for the provenance of numbers."""
    files = {name: file for name in names if (file := find_weight(name, weights_dir)) is not None}
    return {n: file.name[:16] if FILES[n].place == "hub" else file_sha256(file)[:16] for n, file in files.items()}


def altered_files(hashes: Mapping[str, str]) -> list[str]:
    """Files of `weight_hashes` that are not the published ones, as far as their sha256 is published."""
    published = {name: FILES[name].files[0].sha256[:_SHORTEST] for name in hashes if name in FILES}
    return [name for name, sha256 in published.items() if sha256 and not hashes[name].startswith(sha256)]


_SIZE, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class SeparableSSIM(nn.Module):
    """pyiqa's SSIM (Wang et al. 2004: 11 x 11 Gaussian window, sigma 1.5, valid positions only), 25 times as fast.

    In float64, rows and columns filtered one after the other. It differs from pyiqa's by less than 1e-6, because pyiqa
    rounds its window to float32.

    Args:
        test_y_channel: measure the rounded Y of `color_space` instead of every channel.
        color_space: "ycbcr" (limited range) or "yiq".
    """

    window: torch.Tensor

    def __init__(self, test_y_channel: bool, color_space: str) -> None:
        super().__init__()
        self._on_y, self._color_space = test_y_channel, color_space
        positions = torch.arange(_SIZE, dtype=torch.float64) - _SIZE // 2
        window = torch.exp(-positions.square() / (2 * _SIGMA**2))
        self.register_buffer("window", window / window.sum())

    def forward(self, sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> (B,) in [0, 1]. Raises ValueError when they are smaller than the window."""
        from pyiqa.archs.func_util import preprocess_rgb

        if min(sr.shape[-2:]) < _SIZE:
            raise ValueError(f"its window is {_SIZE}x{_SIZE} px")
        x, y = (preprocess_rgb(image, self._on_y, 255, self._color_space).double() for image in (sr, hq))
        mean_x, mean_y, xx, yy, xy = (self._blur(image) for image in (x, y, x * x, y * y, x * y))
        variances = (xx - mean_x.square()) + (yy - mean_y.square())
        covariance = xy - mean_x * mean_y
        structure = ((2 * covariance + _C2) / (variances + _C2)).relu()
        luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
        return (luminance * structure).mean((1, 2, 3))

    def _blur(self, image: torch.Tensor) -> torch.Tensor:
        # Shifted sums: conv2d in float64 unfolds the image in memory and takes five times as long.
        for dim in (-1, -2):
            length = image.shape[dim] - _SIZE + 1
            total = image.narrow(dim, 0, length) * self.window[0]
            for shift in range(1, _SIZE):
                total.add_(image.narrow(dim, shift, length), alpha=float(self.window[shift]))
            image = total
        return image


FEATURES = 2048
CAVEAT_IMAGES = 2048  # up to it the covariance of the features has no full rank


class InceptionFeatures:
    """Features of images for FID and KID, resized as clean-fid does it. Its weights must be found (`found_weights`).

    Args:
        device: where the network runs.
    """

    def __init__(self, device: torch.device) -> None:
        from pyiqa.archs.inception import InceptionV3

        self._device = device
        self._network = InceptionV3(output_blocks=[InceptionV3.BLOCK_INDEX_BY_DIM[FEATURES]]).eval().to(device)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """(H, W, 3) uint8 -> (2048,) float64."""
        from PIL import Image

        channels = [Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(image, -1, 0)]
        resized = [np.asarray(channel.resize((299, 299), Image.Resampling.BICUBIC)) for channel in channels]
        signed = ((torch.from_numpy(np.stack(resized)).clamp(0, 255) - 128) / 128)[None].to(self._device)
        return self._network(signed, False, False)[0].flatten().double().cpu()


def frechet_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """FID: squared Frechet distance of two Gaussians fitted to features (N, D) and (M, D) (Heusel et al. 2017, eq. 6).

    The trace of the root of the product of the covariances is the nuclear norm of X Y^T / sqrt((N - 1)(M - 1)) with X
    and Y the centred features: exact, also for fewer images than features, where a matrix root is not.
    """
    x, y = first.double(), second.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = (x - mean_x) / (len(x) - 1) ** 0.5, (y - mean_y) / (len(y) - 1) ** 0.5
    root = torch.linalg.matrix_norm(x @ y.T, "nuc")
    return float((mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum() - 2 * root)


def kernel_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """KID: unbiased squared maximum mean discrepancy with k(a, b) = (a.b / D + 1)^3 (Binkowski et al. 2018, eq. 4).

    Over all pairs of (N, D) and (M, D) features; pyiqa averages random subsets of them. It may be negative.
    """
    x, y = first.double(), second.double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal_mean(gram: torch.Tensor) -> torch.Tensor:
        return (gram.sum() - gram.trace()) / (len(gram) * (len(gram) - 1))

    return float(off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean())


DISTANCES = {"frechet": frechet_distance, "kernel": kernel_distance}


def caveat(images: int) -> str:
    """What has to be said beside an FID of this many images; empty when nothing has."""
    if images > CAVEAT_IMAGES:
        return ""
    return (
        f"fid of {images} images is biased upwards and noisy ({FEATURES} features need more than {CAVEAT_IMAGES} "
        "images): compare it only over the same images, and prefer kid, which is unbiased"
    )


Missing = Literal["skip", "error"]
NEEDS_HQ = "needs hq"


class ImageMetric:
    """One number for one image; may be called by several threads.

    Args:
        spec: which metric.
        protocol: gives the colour space.
        device: where it is computed.
        weights_dir: where its weights are looked for first.
    """

    def __init__(self, spec: MetricSpec, protocol: Protocol, device: torch.device, weights_dir: Path | None) -> None:
        self.spec = spec
        self._metric = spec.function or _create(spec, protocol, device, weights_dir)
        # Networks of pyiqa keep what their hooks saw in themselves; its formulas keep nothing.
        self._lock = threading.Lock() if spec.weights or spec.function else contextlib.nullcontext()

    def __call__(self, sr: torch.Tensor, hq: torch.Tensor | None, key: str, taken: Mapping[str, float]) -> float:
        """Measure (1, 3, H, W) in [0, 1]; `taken` is what the metrics before this one gave of the image.

        Raises:
            MegaSRError: the metric cannot be taken of this image, or is not finite or out of its range.
        """
        images = (sr, hq) if self.spec.needs_hq else (sr,)
        try:
            with self._lock:
                if self.spec.of_metrics:
                    value = float(self._metric(*(taken[name] for name in self.spec.of_metrics)))
                else:  # copies: A-FINE normalises in place what it is given
                    value = float(self._metric(*(image if image is None else image.clone() for image in images)))
        except Exception as error:  # pyiqa raises whatever its formulas do on images that are too small
            size = f"{sr.shape[-1]}x{sr.shape[-2]}"
            raise MegaSRError(f"{self.spec.name} cannot be taken of {key!r} ({size} px): {error}") from error
        low, high = self.spec.value_range
        if not (np.isfinite(value) and low <= value <= high):
            raise MegaSRError(f"{self.spec.name} of {key!r} is {value}, not a number from {low:g} to {high:g}")
        return value


def choose_metrics(
    protocol: Protocol, names: Sequence[str] | None, *, has_hq: bool, weights_dir: Path | None, missing: Missing
) -> tuple[list[MetricSpec], dict[str, str]]:
    """Which metrics of a protocol can be taken.

    Args:
        protocol: the protocol.
        names: the metrics asked for; None asks for all.
        has_hq: the set has ground truth; without it, metrics that need it are skipped unless they are named.
        weights_dir: where weights are looked for first.
        missing: whether a metric without its weights is skipped or refused.

    Returns:
        The specs in the order of the protocol, and why each of the others asked for is skipped.

    Raises:
        UsageError: a metric is unknown, named twice, or named although it needs hq; weights_dir is no folder.
        MegaSRError: weights are missing; every file is named with where it can be had.
    """
    if weights_dir is not None and not weights_dir.is_dir():
        raise UsageError(f"weights folder {weights_dir}: no such folder")
    if names is not None and len(set(names)) != len(names):
        raise UsageError(f"metrics {', '.join(names)}: a name occurs twice")
    asked = {protocol.metric(name) for name in (protocol.metric_names if names is None else names)}
    chosen: list[MetricSpec] = []
    skipped, lacking = {}, []
    for spec in (spec for spec in protocol.metrics if spec in asked):
        if spec.needs_hq and not has_hq:
            if names is not None:
                raise UsageError(f"{spec.name} compares with hq, and this set has none")
            skipped[spec.name] = NEEDS_HQ
        elif reason := describe_missing(spec.weights, weights_dir):
            skipped[spec.name] = reason
            if names is not None or not spec.optional:
                lacking.append(f"{spec.name} {reason}")
        elif absent := [name for name in spec.of_metrics if name not in {taken.name for taken in chosen}]:
            skipped[spec.name] = f"is made of {', '.join(absent)}, not taken"
        else:
            chosen.append(spec)
    if lacking and missing == "error":
        raise MegaSRError(
            f"weights of metrics are missing: {'; '.join(lacking)}. Put the files into one folder and name it "
            "(--weights-dir), or go on without these metrics (--missing skip)"
        )
    return chosen, skipped


def without_missing(protocol: Protocol, weights_dir: Path | None, needed: Collection[str] = ()) -> Protocol:
    """The protocol without its optional metrics whose weights are not here, hence with another fingerprint.

    Args:
        protocol: the protocol.
        weights_dir: where weights are looked for first.
        needed: metrics that stay, whatever is missing.
    """
    absent = {m.name for m in protocol.metrics if m.optional and missing_files(m.weights, weights_dir)} - {*needed}
    kept = tuple(m for m in protocol.metrics if m.name not in absent and not absent & {*m.of_metrics})
    return replace(protocol, metrics=kept)


def create_features(spec: MetricSpec, device: torch.device, weights_dir: Path | None) -> InceptionFeatures:
    """The network behind the set metrics. Raises MegaSRError when its weights cannot be loaded."""
    with loading(spec.name, spec.weights, weights_dir):
        return InceptionFeatures(device)


def _create(
    spec: MetricSpec, protocol: Protocol, device: torch.device, weights_dir: Path | None
) -> Callable[..., torch.Tensor]:
    if spec.pyiqa_name == "ssim" and spec.on_y and spec.arguments == (("downsample", False),):
        return SeparableSSIM(True, protocol.color_space).to(device)
    arguments: dict[str, Any] = dict(spec.arguments)
    if spec.on_y:
        arguments |= {"test_y_channel": True, "color_space": protocol.color_space}
    with loading(spec.name, spec.weights, weights_dir):
        import pyiqa

        return pyiqa.create_metric(spec.pyiqa_name, device=device, **arguments)


@contextlib.contextmanager
def loading(name: str, weights: Sequence[str], weights_dir: Path | None) -> Iterator[None]:
    """`found_weights` and `quiet_pyiqa`; an error inside is one MegaSRError that names the weights."""
    try:
        with quiet_pyiqa(), found_weights(weights, weights_dir):
            yield
    except Exception as error:  # unpickling raises nearly anything
        if not weights:
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MegaSRError(f"{name}: its weights ({', '.join(weights)}) cannot be loaded: {first}") from error


@contextlib.contextmanager
def quiet_pyiqa() -> Iterator[None]:
    """Importing pyiqa warns about its own dependencies, and its metrics log and print when made; errors still raise."""
    logging.getLogger("pyiqa").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
