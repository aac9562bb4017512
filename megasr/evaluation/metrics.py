"""Metrics as a protocol means them: built from pyiqa with every argument given, without downloads and log lines."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.distribution import InceptionFeatures
from megasr.evaluation.metric_weights import FILES, describe_missing, find_weight, found_weights, where_weights_go
from megasr.evaluation.spec import MetricSpec, Protocol
from megasr.evaluation.ssim import SeparableSSIM

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
        self._metric = _create(spec, protocol, device, weights_dir)
        # Networks of pyiqa keep what their hooks saw in themselves; formulas keep nothing.
        self._lock = threading.Lock() if spec.weights else contextlib.nullcontext()

    def __call__(self, sr: torch.Tensor, hq: torch.Tensor | None, key: str) -> float:
        """Measure (1, 3, H, W) in [0, 1].

        Raises:
            MegaSRError: the metric cannot be taken of this image, or is not finite.
        """
        images = (sr, hq) if self.spec.needs_hq else (sr,)
        try:
            with self._lock:
                value = float(self._metric(*images))
        except Exception as error:  # pyiqa raises whatever its formulas do on images that are too small
            size = f"{sr.shape[-1]}x{sr.shape[-2]}"
            raise MegaSRError(f"{self.spec.name} cannot be taken of {key!r} ({size} px): {error}") from error
        if not torch.isfinite(torch.tensor(value)):
            raise MegaSRError(f"{self.spec.name} of {key!r} is {value}: this image cannot be measured with this metric")
        return value


def choose_metrics(
    protocol: Protocol,
    names: Sequence[str] | None,
    *,
    has_hq: bool,
    weights_dir: Path | None,
    missing: Missing,
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
    wanted = {protocol.metric(name).name for name in (protocol.metric_names if names is None else names)}
    chosen, skipped = [], {}
    for spec in (spec for spec in protocol.metrics if spec.name in wanted):
        if spec.needs_hq and not has_hq:
            if names is not None:
                raise UsageError(f"{spec.name} compares with hq, and this set has none")
            skipped[spec.name] = NEEDS_HQ
        elif reason := describe_missing(spec.weights, weights_dir):
            skipped[spec.name] = reason
        else:
            chosen.append(spec)
    if missing == "error" and any(reason != NEEDS_HQ for reason in skipped.values()):
        lacking = {name: reason for name, reason in skipped.items() if reason != NEEDS_HQ}
        text = "; ".join(f"{name} {reason}" for name, reason in lacking.items())
        places = where_weights_go([file for name in lacking for file in protocol.metric(name).weights])
        raise MegaSRError(
            f"weights of metrics are missing: {text}. Put the files into {places}, or all into one folder and name it "
            "(--weights-dir); or go on without these metrics (--missing skip)"
        )
    return chosen, skipped


def create_features(spec: MetricSpec, device: torch.device, weights_dir: Path | None) -> InceptionFeatures:
    """The network behind the set metrics. Raises MegaSRError when its weights cannot be loaded."""
    with _loading(spec, weights_dir):
        return InceptionFeatures(device)


def _create(
    spec: MetricSpec, protocol: Protocol, device: torch.device, weights_dir: Path | None
) -> Callable[..., torch.Tensor]:
    arguments: dict[str, Any] = dict(spec.arguments)
    if spec.on_y:
        arguments |= {"test_y_channel": True, "color_space": protocol.color_space}
    if spec.pyiqa_name == "ssim" and spec.on_y and spec.arguments == (("downsample", False),):
        return SeparableSSIM(True, protocol.color_space).to(device)
    for name in spec.weights:  # CLIP is the one network that checks, and fetches again, what lies in its cache
        if FILES[name].place == "clip":
            arguments["backbone"] = str(find_weight(name, weights_dir))
    with _loading(spec, weights_dir):
        import pyiqa

        return pyiqa.create_metric(spec.pyiqa_name, device=device, **arguments)


@contextlib.contextmanager
def _loading(spec: MetricSpec, weights_dir: Path | None) -> Iterator[None]:
    try:
        with quiet_pyiqa(), found_weights(spec.weights, weights_dir):
            yield
    except Exception as error:  # unpickling raises nearly anything
        if not spec.weights:
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MegaSRError(f"{spec.name}: its weights ({', '.join(spec.weights)}) cannot be loaded: {first}") from error


@contextlib.contextmanager
def quiet_pyiqa() -> Iterator[None]:
    """Importing pyiqa warns about its own dependencies, and its metrics log and print when made; errors still raise."""
    logging.getLogger("pyiqa").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
