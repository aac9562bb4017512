"""Versioned evaluation protocols: numbers are comparable only when the fingerprints of their protocols are equal.

The same images score differently under the field's protocols (1.3 dB between two definitions of "PSNR on Y"), so
everything that changes a number is a field of `Protocol` and enters its fingerprint. The registered ones are in
megasr.evaluation.protocol.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from megasr.errors import UsageError, unknown_name

Argument = bool | int | float | str


@dataclass(frozen=True)
class MetricSpec:
    """One number per image, or per set of images, computed by pyiqa.

    Attributes:
        name: column name in rows and reports.
        pyiqa_name: the metric's name in pyiqa.
        higher_is_better: direction; a contract test compares it with pyiqa's own `lower_better`.
        on_y: the metric converts to Y of the protocol's colour space itself (pyiqa's `test_y_channel`).
        arguments: further pyiqa arguments, as pairs so that the spec stays hashable.
        needs_hq: full-reference metric.
        weights: files of megasr.evaluation.metric_weights that it needs, empty when it is a formula.
        of_set: one number for a whole set of images: a distance between the features of sr and hq, which are not
            paired. `arguments` are then those of megasr.evaluation.metrics.
    """

    name: str
    pyiqa_name: str
    higher_is_better: bool
    on_y: bool = False
    arguments: tuple[tuple[str, Argument], ...] = ()
    needs_hq: bool = True
    weights: tuple[str, ...] = ()
    of_set: bool = False


@dataclass(frozen=True)
class Protocol:
    """Everything that changes a number.

    Attributes:
        name: what people call it; ends in the version.
        version: raised whenever any other field changes.
        metrics: what is measured, in the order of the columns.
        color_space: the Y of the `on_y` metrics: limited-range "ycbcr" (16-235, ITU-R BT.601) or full-range "yiq".
        border_px: pixels cut off on each side before measuring.
        rounding: the only rounding there is, written down because it is part of the number: sr and hq are measured as
            they would be read back from 8-bit files.
        size_px: height and width that every image must have: crops are made before restoration, which sees nothing
            else; None measures images as they are.
        resize: images are never resized; sr and hq must be of one size.
    """

    name: str
    version: int
    metrics: tuple[MetricSpec, ...]
    color_space: Literal["ycbcr", "yiq"] = "ycbcr"
    border_px: int = 0
    rounding: Literal["8bit"] = "8bit"
    size_px: int | None = None
    resize: Literal["never"] = "never"

    def __post_init__(self) -> None:
        if self.rounding != "8bit":
            raise UsageError(f"protocol {self.name}: rounding {self.rounding!r}; metrics are taken on 8-bit images")
        if self.resize != "never":
            raise UsageError(f"protocol {self.name}: resize {self.resize!r}; metrics are taken on images as they are")
        if self.border_px < 0:
            raise UsageError(f"protocol {self.name}: border_px is {self.border_px}, must be 0 or more")
        names = [metric.name for metric in self.metrics]
        if len(set(names)) != len(names):
            raise UsageError(f"protocol {self.name}: a metric name occurs twice in {', '.join(names)}")

    @property
    def fingerprint(self) -> str:
        """Eight hex digits over all fields. Rows with different fingerprints may not be compared."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=4).hexdigest()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics in the order of the columns."""
        return tuple(metric.name for metric in self.metrics)

    def metric(self, name: str) -> MetricSpec:
        """The spec of a metric by its name. Raises UsageError when the protocol does not measure it."""
        for spec in self.metrics:
            if spec.name == name:
                return spec
        raise unknown_name(f"metric of protocol {self.name}", name, self.metric_names)
