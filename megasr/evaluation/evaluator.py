"""The Evaluator: sr and hq in, rows and their summary out; results are kept as JSON."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from megasr.batch import check_image, check_range, extremes
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.intervals import mean_intervals
from megasr.evaluation.metrics import DISTANCES, FEATURES, ImageMetric, Missing, choose_metrics, create_features
from megasr.evaluation.protocol import Protocol, get_protocol
from megasr.files import write_whole
from megasr.images import quantise, to_uint8
from megasr.rng import numpy_generator

Row = dict[str, Any]  # "key": str, then one float per metric
# provenance key: [images evaluated, images of the whole set], where the images are of a benchmark set.
BENCHMARK_IMAGES = "benchmark_images"


@dataclass(frozen=True)
class Evaluation:
    """One set of images, measured under one protocol.

    Attributes:
        protocol: name of the protocol.
        fingerprint: of the protocol. Numbers of different fingerprints may not be compared.
        rows: one {"key", metric: value} per image, in the order of the set.
        means: metric -> mean over the images, in the order of the protocol.
        intervals: metric -> 95 % interval of the mean over photographs; empty for a single photograph.
        set_values: metric of the whole set (FID, KID) -> value.
        skipped: metric -> why it was not taken.
        data: name of the benchmark set, None when the images are none.
        provenance: commit, versions, weights, device, date, and config and seed where the images were made here.
    """

    protocol: str
    fingerprint: str
    rows: tuple[Row, ...]
    means: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    set_values: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    data: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the images in the order of the rows."""
        return tuple(row["key"] for row in self.rows)

    def get_protocol(self) -> Protocol:
        """The registered protocol, for directions and names.

        Raises:
            MegaSRError: it has changed since these numbers were taken.
        """
        protocol = get_protocol(self.protocol)
        if protocol.fingerprint != self.fingerprint:
            raise MegaSRError(
                f"these numbers were taken under {self.protocol} {self.fingerprint}, "
                f"which is {protocol.fingerprint} here: they cannot be compared"
            )
        return protocol


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write JSON, whole or not at all. Raises MegaSRError when the place cannot be written to."""
    write_whole(path, (json.dumps(asdict(evaluation), indent=1) + "\n").encode())


def read_evaluation(path: Path) -> Evaluation:
    """Read what write_evaluation wrote.

    Raises:
        MegaSRError: the file is missing, damaged or holds something else.
    """
    try:
        content = json.loads(path.read_text())
        content["rows"] = tuple(content["rows"])
        content["intervals"] = {name: (low, high) for name, (low, high) in content["intervals"].items()}
        return Evaluation(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MegaSRError(f"{path} is not an evaluation that can be read: {error}") from error


def check_weights(first: Evaluation, other: Evaluation) -> None:
    """Refuse to compare numbers of one metric that were taken with two files of weights.

    Raises:
        UsageError: a file that both were measured with has another sha256.
    """
    mine, theirs = first.provenance.get("weights", {}), other.provenance.get("weights", {})
    for name in mine.keys() & theirs.keys():
        if mine[name] != theirs[name]:
            raise UsageError(f"measured with two files {name}, {mine[name]} and {theirs[name]}: not to be compared")


def version_note(evaluations: Sequence[Evaluation]) -> str:
    """A note on numbers that different versions of pyiqa have taken; empty when one has."""
    versions = {evaluation.provenance.get("versions", {}).get("pyiqa", "unknown") for evaluation in evaluations}
    return f"measured with different versions of pyiqa: {', '.join(sorted(versions))}" if len(versions) > 1 else ""


class Images(NamedTuple):
    """One image to measure: its name, and (1, 3, H, W) sr and hq; hq is None in sets without ground truth."""

    key: str
    sr: torch.Tensor
    hq: torch.Tensor | None


class Evaluator:
    """Measures images under one protocol.

    Each image is measured alone by one thread, several at once: some metrics differ in the last bit with the batch size
    and the number of threads, and a row must not depend on the other images.

    Args:
        protocol: what is measured and how.
        device: where the metrics are computed.
        metrics: which of the protocol's metrics are taken; None takes all that can be.
        weights_dir: folder where the weights of metrics are looked for first, at any depth, by the name of the file.
        missing: whether a metric whose weights are missing is skipped or refused.
        has_hq: the images have ground truth.

    Raises:
        UsageError: a metric is unknown, or is named although it needs hq.
        MegaSRError: weights are missing.
    """

    def __init__(
        self,
        protocol: Protocol,
        device: torch.device | str = "cpu",
        *,
        metrics: Sequence[str] | None = None,
        weights_dir: Path | None = None,
        missing: Missing = "error",
        has_hq: bool = True,
    ) -> None:
        self.protocol, self.device, self.weights_dir, self.has_hq = protocol, torch.device(device), weights_dir, has_hq
        specs, self.skipped = choose_metrics(protocol, metrics, has_hq=has_hq, weights_dir=weights_dir, missing=missing)
        self._metrics = [ImageMetric(spec, protocol, self.device, weights_dir) for spec in specs if not spec.of_set]
        self._set_specs = [spec for spec in specs if spec.of_set]
        self._features = create_features(self._set_specs[0], self.device, weights_dir) if self._set_specs else None
        self.weights = tuple(dict.fromkeys(name for spec in specs for name in spec.weights))
        # The arguments that make an evaluator of the same vectors in another process, without the device.
        names = [spec.name for spec in specs]
        self.recipe = {"protocol": protocol, "metrics": names, "weights_dir": weights_dir, "has_hq": has_hq}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics per image that are taken, in the order of the protocol."""
        return tuple(metric.spec.name for metric in self._metrics)

    @property
    def width(self) -> int:
        """Length of a vector."""
        return len(self._metrics) + (0 if self._features is None else 2 * FEATURES)

    def vectors(self, sr: torch.Tensor, hq: torch.Tensor | None, keys: Sequence[str]) -> torch.Tensor:
        """Measure (B, 3, H, W) sr against hq: (B, width) float64 on the CPU.

        Raises:
            UsageError: shapes, ranges or sizes do not fit the protocol, or the keys are not B distinct names.
            MegaSRError: sr or a metric is not finite. Such a value is never averaged away; it stops the evaluation.
        """
        check_image(sr, "sr")
        if hq is not None and len(hq) != len(sr):
            raise UsageError(f"{len(sr)} sr, but {len(hq)} hq: metrics compare images of equal sizes")
        if len(keys) != len(sr):
            raise UsageError(f"{len(keys)} keys for {len(sr)} images: {', '.join(keys)}")
        check_keys(keys, keys)
        images = [Images(key, sr[i : i + 1], None if hq is None else hq[i : i + 1]) for i, key in enumerate(keys)]
        return torch.stack(list(self.measure(images, lambda image: image)))

    def measure(self, items: Sequence[Any], load: Callable[[Any], Images]) -> Iterator[torch.Tensor]:
        """One vector per item, in their order; threads load and measure ahead. Raises as `vectors`."""
        threads = torch.get_num_threads()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(len(items), cores)
        # pyiqa sets these in every call and restores them: of calls that overlap, one may restore another's.
        cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        try:
            with cudnn, ThreadPoolExecutor(max(1, workers), initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from pool.map(lambda item: self._vector(load(item)), items)
        finally:
            torch.set_num_threads(threads)  # what a thread sets is what later threads start with

    def rows(self, sr: torch.Tensor, hq: torch.Tensor | None, keys: Sequence[str]) -> list[Row]:
        """The per-image metrics of `vectors`: one `{"key": ..., metric: value, ...}` per image, in the order given."""
        return self.rows_of(self.vectors(sr, hq, keys), keys)

    def rows_of(self, vectors: torch.Tensor, keys: Sequence[str]) -> list[Row]:
        """Rows of (N, width) vectors."""
        values = vectors[:, : len(self._metrics)].tolist()
        return [
            {"key": key, **dict(zip(self.metric_names, row, strict=True))}
            for key, row in zip(keys, values, strict=True)
        ]

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
        return {name: math.fsum(row[name] for row in rows) / len(rows) for name in self.metric_names}

    def evaluation(
        self,
        vectors: torch.Tensor,
        keys: Sequence[str],
        *,
        data: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """Summarise (N, width) vectors of a whole set: rows, means, their intervals, and the distances of the set."""
        rows = self.rows_of(vectors, keys)
        means = self.summary(rows)
        values, features = vectors[:, : len(self._metrics)].numpy(), vectors[:, len(self._metrics) :]
        intervals = mean_intervals(values, keys, numpy_generator(0, "intervals"))
        set_values, lacking = {}, {}
        for spec in self._set_specs:
            if len(rows) > 1:
                distance = DISTANCES[str(dict(spec.arguments)["distance"])]
                set_values[spec.name] = distance(features[:, :FEATURES], features[:, FEATURES:])
            else:
                lacking[spec.name] = "needs two images"
        return Evaluation(
            protocol=self.protocol.name,
            fingerprint=self.protocol.fingerprint,
            rows=tuple(rows),
            means=means,
            intervals=dict(zip(self.metric_names, intervals, strict=False)),
            set_values=set_values,
            skipped={**self.skipped, **lacking},
            data=data,
            provenance=dict(provenance or {}),
        )

    @torch.no_grad()
    def _vector(self, images: Images) -> torch.Tensor:
        self._check(images)
        key, sr, hq = images
        border = self.protocol.border_px
        inner = (..., slice(border, sr.shape[-2] - border), slice(border, sr.shape[-1] - border))
        sr = quantise(sr[inner].to(self.device))
        hq = None if hq is None else quantise(hq[inner].to(self.device))
        taken: dict[str, float] = {}
        for metric in self._metrics:
            taken[metric.spec.name] = metric(sr, hq, key, taken)
        values = torch.tensor(list(taken.values()), dtype=torch.float64)
        if self._features is None or hq is None:
            return values
        return torch.cat([values, *(self._features(to_uint8(image[0])) for image in (sr, hq))])

    def _check(self, images: Images) -> None:
        key, sr, hq = images
        check_image(sr, "sr")
        if self.has_hq != (hq is not None):
            raise UsageError(
                f"{key!r} has {'no ' if hq is None else ''}hq, but the evaluator was made with has_hq={self.has_hq}"
            )
        self.protocol.check_size(sr.shape[-2:], repr(key))
        if bad := int((~torch.isfinite(sr)).sum()):
            raise MegaSRError(f"sr of {key!r} has {bad} non-finite values; the model that made it has diverged")
        if hq is None:
            return
        check_image(hq, "hq")
        if sr.shape != hq.shape:
            raise UsageError(
                f"sr has shape {tuple(sr.shape)} but hq {tuple(hq.shape)} for {key!r}: metrics compare equal sizes"
            )
        check_range(extremes(hq), f"hq of {key!r}")


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


def gather_vectors(measured: Mapping[str, torch.Tensor], keys: Sequence[str]) -> torch.Tensor:
    """The vectors of all processes in the order of a set: (N, width) float64; every process must call it.

    Args:
        measured: what this process has measured: key -> (width,) float64 on the CPU. An image that several processes
            have measured counts once.
        keys: the N images of the set.

    Raises:
        MegaSRError: an image was not measured, or is not of the set; they are listed.
    """
    parts: list[Any] = [dict(measured)]
    if torch.distributed.is_initialized():
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, dict(measured))
    vectors = {key: vector for part in reversed(parts) for key, vector in part.items()}
    if missing := [key for key in keys if key not in vectors]:
        raise MegaSRError(f"{len(missing)} of {len(keys)} images were not measured: {', '.join(missing)}")
    return torch.stack([vectors[key] for key in keys])
