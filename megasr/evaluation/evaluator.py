"""Applies a protocol to images: one row of numbers per image, and their means.

Shapes: sr and hq are (B, 3, H, W) float RGB, hq in [0, 1]; sr may overshoot and is clipped by the quantisation.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from megasr.batch import check_image
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.protocol import MetricSpec, Protocol
from megasr.images import quantise

Row = dict[str, Any]  # "key": str, then one float per metric of the protocol


class Evaluator:
    """Measures images under one protocol.

    Images are measured one at a time: some metrics differ in the last bit with the batch size, and a row must not
    depend on which images were measured beside it.

    Args:
        protocol: what is measured and how.
        device: where the metrics are computed.
    """

    def __init__(self, protocol: Protocol, device: torch.device | str = "cpu") -> None:
        self.protocol = protocol
        self.device = torch.device(device)
        self._metrics = [(spec, _create(spec, protocol, self.device)) for spec in protocol.metrics]

    @torch.no_grad()
    def rows(self, sr: torch.Tensor, hq: torch.Tensor, keys: Sequence[str]) -> list[Row]:
        """Measure (B, 3, H, W) sr against hq: one `{"key": ..., metric: value, ...}` per image, in the order given.

        Raises:
            UsageError: shapes or ranges do not fit, or the keys are not B distinct names.
            MegaSRError: sr or a metric is not finite. Such a value is never averaged away; it stops the evaluation.
        """
        self._check(sr, hq, keys)
        return [self._row(sr[i : i + 1], hq[i : i + 1], key) for i, key in enumerate(keys)]

    def summary(self, rows: Sequence[Mapping[str, Any]], keys: Sequence[str] | None = None) -> dict[str, float]:
        """Mean of every metric over the rows.

        Args:
            rows: what `rows` returned, for a whole set.
            keys: the images the set must consist of; None accepts any set without duplicates.

        Raises:
            UsageError: no rows, or keys are missing, unexpected or repeated (they are listed).
        """
        if not rows:
            raise UsageError("summary of no images: the evaluation set is empty")
        got = [str(row["key"]) for row in rows]
        check_keys(got, got if keys is None else keys)
        return {name: math.fsum(row[name] for row in rows) / len(rows) for name in self.protocol.metric_names}

    def _check(self, sr: torch.Tensor, hq: torch.Tensor, keys: Sequence[str]) -> None:
        check_image(sr, "sr")
        check_image(hq, "hq")
        if sr.shape != hq.shape:
            raise UsageError(f"sr has shape {tuple(sr.shape)} but hq {tuple(hq.shape)}: metrics compare equal sizes")
        if len(keys) != len(sr):
            raise UsageError(f"{len(keys)} keys for {len(sr)} images: {', '.join(keys)}")
        check_keys(keys, keys)
        if not (hq.min() >= 0 and hq.max() <= 1):
            raise UsageError(f"hq: values in [{hq.min():.4g}, {hq.max():.4g}], expected [0, 1]")
        for key, image in zip(keys, sr, strict=True):
            if bad := int((~torch.isfinite(image)).sum()):
                raise MegaSRError(f"sr of {key!r} has {bad} non-finite values; the model that made it has diverged")

    def _row(self, sr: torch.Tensor, hq: torch.Tensor, key: str) -> Row:
        border = self.protocol.border_px
        inner = (..., slice(border, sr.shape[-2] - border), slice(border, sr.shape[-1] - border))
        images = [quantise(image[inner].to(self.device)) for image in (sr, hq)]
        row: Row = {"key": key}
        for spec, metric in self._metrics:
            value = float(metric(*images) if spec.needs_hq else metric(images[0]))
            if not math.isfinite(value):
                raise MegaSRError(f"{spec.name} of {key!r} is {value}: this image cannot be measured with this metric")
            row[spec.name] = value
        return row


def check_keys(got: Sequence[str], expected: Sequence[str]) -> None:
    """Check that `got` holds every expected key once and nothing else, in any order.

    Raises:
        UsageError: keys are missing, unexpected or repeated; they are listed.
    """
    problems = {
        "missing": sorted(set(expected) - set(got)),
        "unexpected": sorted(set(got) - set(expected)),
        "repeated": sorted(key for key, count in Counter(got).items() if count > 1),
    }
    if any(problems.values()):
        text = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise UsageError(f"the images measured are not the evaluation set: {text}")


def _create(spec: MetricSpec, protocol: Protocol, device: torch.device) -> Callable[..., torch.Tensor]:
    """Build a pyiqa metric, without its log lines."""
    arguments = dict(spec.arguments)
    if spec.on_y:
        arguments |= {"test_y_channel": True, "color_space": protocol.color_space}
    with _quiet_pyiqa():
        import pyiqa

        return pyiqa.create_metric(spec.pyiqa_name, device=device, **arguments)


@contextlib.contextmanager
def _quiet_pyiqa() -> Iterator[None]:
    """Importing pyiqa warns about its own dependencies and logs every metric it creates; errors still raise."""
    import logging
    import warnings

    logging.getLogger("pyiqa").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
