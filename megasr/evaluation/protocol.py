"""Versioned evaluation protocols: numbers are comparable only when the fingerprints of their protocols are equal.

The same images score differently under the field's protocols (1.3 dB between two definitions of "PSNR on Y"), so
everything that changes a number is a field of `Protocol` and enters its fingerprint: every argument that pyiqa would
fill in by itself is written out. A registered protocol is never edited, its successor is another entry.

A user's module adds its own with `register_metric` and `register_protocol` (see megasr.plugins), and names the protocol
where any other is named: in `evaluate`, `test`, the monitor and studies.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from megasr.errors import UsageError, unknown_name
from megasr.evaluation.periodicity import spectral_peaks
from megasr.plugins import Registry

Argument = bool | int | float | str


@dataclass(frozen=True)
class MetricSpec:
    """One number per image, or per set of images, computed by pyiqa, by a function of your own, or from other numbers.

    Attributes:
        name: column name in rows and reports.
        pyiqa_name: the metric's name in pyiqa; empty with a function.
        higher_is_better: direction; a contract test compares it with pyiqa's own `lower_better`.
        on_y: the metric converts to Y of the protocol's colour space itself (pyiqa's `test_y_channel`).
        arguments: further pyiqa arguments, as pairs so that the spec stays hashable.
        needs_hq: full-reference metric.
        weights: files of megasr.evaluation.metrics.FILES that it needs, empty when it is a formula.
        of_set: one number for a whole set of images: a distance between the features of sr and hq, which are not
            paired. `arguments` are then those of megasr.evaluation.metrics.
        function: a function of a module of your own (sr, hq) -> float, or (sr) -> float without needs_hq; images are
            (1, 3, H, W) float32 RGB in [0, 1], rounded to 8 bits. Its name is a part of the fingerprint, its code not.
        value_range: least and largest value of the function; any other stops the evaluation.
        of_metrics: metrics of the same image that the function is given instead of images, as floats in this order.
        optional: skipped like a metric that needs hq, and never refused, when its weights are missing and it is not
            named. Says nothing about the number, so it is no part of the fingerprint.

    Raises:
        UsageError: it has both a pyiqa_name and a function, or neither, or is made of metrics without a function.
    """

    name: str
    pyiqa_name: str = ""
    _: KW_ONLY
    higher_is_better: bool
    on_y: bool = False
    arguments: tuple[tuple[str, Argument], ...] = ()
    needs_hq: bool = True
    weights: tuple[str, ...] = ()
    of_set: bool = False
    function: Callable[..., Any] | None = None
    value_range: tuple[float, float] = (float("-inf"), float("inf"))
    of_metrics: tuple[str, ...] = ()
    optional: bool = False

    def __post_init__(self) -> None:
        if bool(self.pyiqa_name) == (self.function is not None):
            raise UsageError(f"metric {self.name}: give it either a pyiqa_name or a function")
        if self.of_metrics and self.function is None:
            raise UsageError(f"metric {self.name} is made of {', '.join(self.of_metrics)}: give it a function")

    def identity(self) -> dict[str, Any]:
        """What of it enters the fingerprint of a protocol."""
        content = asdict(self)
        function, value_range = content.pop("function"), content.pop("value_range")
        of_metrics, _ = content.pop("of_metrics"), content.pop("optional")
        if function is None:
            return content
        content |= {"of_metrics": of_metrics} if of_metrics else {}
        return content | {"function": f"{function.__module__}.{function.__qualname__}", "value_range": value_range}


@dataclass(frozen=True)
class Protocol:
    """Everything that changes a number.

    Attributes:
        name: what people call it; ends in the version.
        version: raised whenever any other field changes.
        metrics: what is measured, in the order of the columns.
        color_space: the Y of the `on_y` metrics: limited-range "ycbcr" (16-235, ITU-R BT.601) or full-range "yiq".
        border_px: pixels cut off on each side before measuring.
        rounding: sr and hq are measured as they would be read back from 8-bit files, always.
        size_px: height and width that every image must have (crops are made before restoration); None measures images
            as they are.
        resize: images are never resized; sr and hq must be of one size.

    Raises:
        UsageError: a value is out of range, or two metrics have one name.
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
        if (self.rounding, self.resize) != ("8bit", "never") or self.border_px < 0:
            given = f"rounding {self.rounding!r}, resize {self.resize!r}, border_px {self.border_px}"
            raise UsageError(f"protocol {self.name}: {given}; needed: '8bit', 'never' and 0 or more")
        names = self.metric_names
        if len(set(names)) != len(names):
            raise UsageError(f"protocol {self.name}: a metric name occurs twice in {', '.join(names)}")
        for place, metric in enumerate(self.metrics):
            if later := set(metric.of_metrics) - set(names[:place]):
                raise UsageError(
                    f"protocol {self.name}: {metric.name} is made of {', '.join(sorted(later))}, not measured before it"
                )

    @property
    def fingerprint(self) -> str:
        """Eight hex digits over all fields. Rows with different fingerprints may not be compared."""
        content = asdict(self) | {"metrics": [metric.identity() for metric in self.metrics]}
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=4).hexdigest()

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

    def measures_alike(self, other: Protocol, metrics: Sequence[str]) -> bool:
        """Whether numbers of these metrics that were taken under `other` may stand beside those taken under this."""
        settings = ("color_space", "border_px", "rounding", "size_px", "resize")
        return all(getattr(self, name) == getattr(other, name) for name in settings) and all(
            other.metric(name) in self.metrics for name in metrics
        )

    def check_size(self, size: Sequence[int], image: str) -> None:
        """Refuse an image whose (height, width) the protocol does not measure. Raises UsageError."""
        if self.size_px is not None and tuple(size) != (self.size_px, self.size_px):
            raise UsageError(
                f"{image} is {size[1]}x{size[0]} px; {self.name} measures {self.size_px}x{self.size_px} px: its crops "
                "are made before restoration"
            )


METRICS: Registry[MetricSpec] = Registry("metric")
PROTOCOLS: Registry[Protocol] = Registry("protocol")


def register_metric(spec: MetricSpec) -> MetricSpec:
    """Add a metric by its name, for protocols to take. Raises UsageError when the name is taken."""
    return METRICS.register(spec.name, spec)


def register_protocol(protocol: Protocol) -> Protocol:
    """Add a protocol by its name. Raises UsageError when the name is taken."""
    return PROTOCOLS.register(protocol.name, protocol)


def get_protocol(name: str) -> Protocol:
    """The registered protocol of this name. Raises UsageError with the nearest names when there is none."""
    return PROTOCOLS[name]


def _register(name: str, pyiqa_name: str, **settings: Any) -> MetricSpec:
    arguments = tuple(settings.pop("arguments", {}).items())
    return register_metric(MetricSpec(name, pyiqa_name, arguments=arguments, **settings))


PSNR = _register("psnr", "psnr", higher_is_better=True, on_y=True)
SSIM = _register("ssim", "ssim", higher_is_better=True, on_y=True, arguments={"downsample": False})
LPIPS = _register(
    "lpips", "lpips", higher_is_better=False, arguments={"net": "alex", "version": "0.1"},
    weights=("alexnet-owt-7be5be79.pth", "LPIPS_v0.1_alex-df73285e.pth"),
)  # fmt: skip
DISTS = _register(
    "dists", "dists", higher_is_better=False, weights=("vgg16-397923af.pth", "DISTS_weights-f5e65c96.pth")
)
NIQE = _register(
    "niqe", "niqe", higher_is_better=False, needs_hq=False, weights=("niqe_modelparameters.mat",),
    arguments={"test_y_channel": True, "color_space": "yiq", "crop_border": 0, "version": "original"},
)  # fmt: skip
MUSIQ = _register(
    "musiq", "musiq", higher_is_better=True, needs_hq=False, arguments={"pretrained": "koniq10k"},
    weights=("musiq_koniq_ckpt-e95806b9.pth",),
)  # fmt: skip
# Two metrics share the name MANIQA in the field: KonIQ-10k's weights score the same images 0.1 lower than PIPAL's.
_VIT = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
MANIQA_PIPAL = _register(
    "maniqa-pipal", "maniqa-pipal", higher_is_better=True, needs_hq=False, weights=(_VIT, "MANIQA_PIPAL-ae6d356b.pth"),
    arguments={"train_dataset": "pipal", "test_sample": 20, "scale": 0.13},
)  # fmt: skip
MANIQA_KONIQ = _register(
    "maniqa", "maniqa", higher_is_better=True, needs_hq=False, weights=(_VIT, "ckpt_koniq10k.pt"),
    arguments={"train_dataset": "koniq", "test_sample": 20, "scale": 0.8},
)  # fmt: skip
CLIPIQA = _register(
    "clipiqa", "clipiqa", higher_is_better=True, needs_hq=False, weights=("RN50.pt",),
    arguments={"model_type": "clipiqa", "backbone": "RN50"},
)  # fmt: skip
CLIPIQA_PLUS = _register(
    "clipiqa+_vitL14_512", "clipiqa+_vitL14_512", higher_is_better=True, needs_hq=False,
    weights=("ViT-L-14.pt", "CLIPIQA+_ViTL14_512-e66488f2.pth"),
    arguments={"model_type": "clipiqa+_vitL14_512", "backbone": "ViT-L/14", "pos_embedding": True},
)  # fmt: skip
PAQ2PIQ = _register(
    "paq2piq", "paq2piq", higher_is_better=True, needs_hq=False, arguments={"backbone": "resnet18"},
    weights=("resnet18-f37072fd.pth", "P2P_RoIPoolModel-fit.10.bs.120-ca69882e.pth"),
)  # fmt: skip
# Since 2024. CLIP-IQA+ without a suffix is the one on ResNet-50.
CLIPIQA_PLUS_RN50 = _register(
    "clipiqa+", "clipiqa+", higher_is_better=True, needs_hq=False,
    weights=("RN50.pt", "CLIP-IQA+_learned_prompts-603f3273.pth"),
    arguments={"model_type": "clipiqa+", "backbone": "RN50"},
)  # fmt: skip
TOPIQ_NR = _register(
    "topiq_nr", "topiq_nr", higher_is_better=True, needs_hq=False, weights=("cfanet_nr_koniq_res50-9a73138b.pth",),
    arguments={
        "semantic_model_name": "resnet50", "model_name": "cfanet_nr_koniq_res50", "use_ref": False,
        "backbone_pretrain": False,  # the file holds the backbone too
    },
)  # fmt: skip
LIQE = _register(
    "liqe", "liqe", higher_is_better=True, needs_hq=False, weights=("ViT-B-32.pt", "liqe_koniq.pt"),
    arguments={"pretrained": "koniq", "backbone": "ViT-B/32"},
)  # fmt: skip
QUALICLIP = _register(
    "qualiclip", "qualiclip", higher_is_better=True, needs_hq=False, weights=("RN50.pt", "QualiCLIP.pth"),
    arguments={"model_type": "qualiclip", "backbone": "RN50"},
)  # fmt: skip
AFINE_FR = _register(
    "afine_fr", "afine_fr", higher_is_better=False, weights=("ViT-B-32.pt", "afine.pth"),
    arguments={"model_type": "afine_fr", "pretrained": True, "clip_backbone": "ViT-B/32"},
)  # fmt: skip
QALIGN = _register(
    "qalign", "qalign", higher_is_better=True, needs_hq=False, weights=("q-future/one-align",),
    arguments={"dtype": "fp16"}, optional=True,
)  # fmt: skip
_INCEPTION = ("pt_inception-2015-12-05-6726825d.pth",)
FID = _register(
    "fid", "fid", higher_is_better=False, of_set=True, weights=_INCEPTION,
    arguments={"distance": "frechet", "features": "inception-2048-clean"},
)  # fmt: skip
KID = _register(
    "kid", "fid", higher_is_better=False, of_set=True, weights=_INCEPTION,
    arguments={"distance": "kernel", "features": "inception-2048-clean"},
)  # fmt: skip

# Metrics without weights: PSNR and SSIM on Y as the restoration field takes them, GMSD (gradient magnitude deviation,
# Xue et al. 2014), FSIM (phase congruency, with colour, Zhang et al. 2011) and NLPD (normalised Laplacian pyramid
# distance, Laparra et al. 2016).
WEIGHT_FREE_V1 = register_protocol(
    Protocol(
        "weight-free-v1",
        1,
        (
            _register("psnr_y", "psnr", higher_is_better=True, on_y=True),
            _register("ssim_y", "ssim", higher_is_better=True, on_y=True, arguments={"downsample": False}),
            _register("gmsd", "gmsd", higher_is_better=False, arguments={"test_y_channel": True}),
            _register("fsim", "fsim", higher_is_better=True, arguments={"chromatic": True}),
            _register("nlpd", "nlpd", higher_is_better=False, arguments={"channels": 1, "test_y_channel": True}),
        ),
    )
)
# With the peaks of the spectrum that sr has and hq has not: grids, a known fault of one-step methods.
SPECTRAL_PEAKS = register_metric(
    MetricSpec("spectral_peaks", higher_is_better=False, function=spectral_peaks, value_range=(0.0, float("inf")))
)
register_protocol(Protocol("weight-free-v2", 2, (*WEIGHT_FREE_V1.metrics, SPECTRAL_PEAKS)))
# The same beside the perceptual distances that the field reports; for studies of objectives and guidance.
register_protocol(Protocol("paired-v1", 1, (*WEIGHT_FREE_V1.metrics, SPECTRAL_PEAKS, LPIPS, DISTS)))
# What `make study` takes on a machine that may have no weights.
register_protocol(
    Protocol("study-v1", 1, (*WEIGHT_FREE_V1.metrics, replace(LPIPS, optional=True), replace(DISTS, optional=True)))
)
# Quality without ground truth: the other half of a study whose primary metric compares with hq.
register_protocol(Protocol("no-reference-v1", 1, (NIQE, MUSIQ)))
_FIELD = (PSNR, SSIM, LPIPS, DISTS, FID, KID, NIQE, MUSIQ, MANIQA_PIPAL, CLIPIQA)
# 128 px centre crops restored to 512 px: StableSR, SeeSR, OSEDiff, PiSA-SR, TSD-SR, S3Diff, AddSR. The calls are those
# of OSEDiff's test script. The border is 0 as in that code; SeeSR's author says 4.
register_protocol(Protocol("stablesr-crops-v1", 1, _FIELD, size_px=512))
# 256 px inputs restored to 1024 px: DreamClear, LucidFlux. Its border is not published; 0 is assumed.
register_protocol(
    Protocol(
        "dreamclear-1024-v1", 1, (PSNR, SSIM, LPIPS, DISTS, FID, KID, NIQE, MANIQA_KONIQ, MUSIQ, CLIPIQA), size_px=1024
    )
)
# Whole photographs: D3SR, PASD, ResShift and InvSR on RealSR. Which MANIQA they take differs; PIPAL's is taken here.
register_protocol(Protocol("whole-image-v1", 1, _FIELD))
# What papers of 2026 add, for the same images. Q-Align's 8 billion parameters are taken where they are.
register_protocol(
    Protocol(
        "stablesr-crops-v2",
        2,
        (*_FIELD, TOPIQ_NR, LIQE, QUALICLIP, CLIPIQA_PLUS_RN50, AFINE_FR, QALIGN),
        size_px=512,
    )
)
# StrSR's tables of whole images. Not A-FINE: it takes sides that are multiples of 32 px only.
register_protocol(Protocol("whole-image-v2", 2, (*_FIELD, QUALICLIP, QALIGN)))


def ntire26_score(lpips: float, dists: float, clipiqa: float, maniqa: float, musiq: float, niqe: float) -> float:
    """Score of the perceptual track of NTIRE 2026's super-resolution challenge (2604.14558), of one image."""
    return (1 - lpips) + (1 - dists) + clipiqa + maniqa + musiq / 100 + max(0.0, (10 - niqe) / 10)


# Its rules: pyiqa's defaults, by which MANIQA is KonIQ-10k's; PSNR on Y without 4 px at each side.
register_protocol(
    Protocol(
        "ntire26-perceptual-v1",
        1,
        (
            _register("psnr_y_border4", "psnr", higher_is_better=True, on_y=True, arguments={"crop_border": 4}),
            *(LPIPS, DISTS, CLIPIQA, MANIQA_KONIQ, MUSIQ, NIQE),
            register_metric(
                MetricSpec(
                    "ntire26_score",
                    higher_is_better=True,
                    function=ntire26_score,
                    of_metrics=("lpips", "dists", "clipiqa", "maniqa", "musiq", "niqe"),
                )
            ),
        ),
    )
)
# pyiqa's defaults, as FaithDiff's script takes them: PSNR on RGB, SSIM on the full-range Y of YIQ.
register_protocol(
    Protocol(
        "rgb-v1",
        1,
        (
            _register("psnr_rgb", "psnr", higher_is_better=True, arguments={"test_y_channel": False}),
            _register("ssim_yiq", "ssim", higher_is_better=True, on_y=True, arguments={"downsample": False}),
            *(LPIPS, DISTS, MUSIQ, MANIQA_PIPAL, CLIPIQA_PLUS, PAQ2PIQ),
        ),
        color_space="yiq",
    )
)


# What others published under a protocol ------------------------------------------------------------------------------

PUBLISHED = Path(__file__).parents[1] / "assets" / "published.csv"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    Attributes:
        method: what was measured.
        steps: sampling steps per image; None when the table does not say or there are none.
        protocol: name of the protocol it was measured under.
        data: name of the image set.
        images: number of images; None when it is not published.
        values: metric of the protocol -> value, as printed.
        source: paper (arXiv id) and table.
        secondary: read in notes about the paper, not in the paper itself.
    """

    method: str
    steps: int | None
    protocol: str
    data: str
    images: int | None
    values: Mapping[str, float]
    source: str
    secondary: bool = False

    @property
    def label(self) -> str:
        """Method and steps as the field writes them: SeeSR-50."""
        return self.method if self.steps is None else f"{self.method}-{self.steps}"

    def is_under(self, protocol: Protocol) -> bool:
        """Whether these numbers may stand beside those that were taken under this protocol."""
        return protocol.measures_alike(get_protocol(self.protocol), tuple(self.values))


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Every published row, in the order of the file."""
    with PUBLISHED.open(newline="") as file:
        return tuple(_row(record) for record in csv.DictReader(file))


def _row(record: dict[str, str]) -> PublishedRow:
    text = {name: record.pop(name) for name in ("method", "protocol", "data", "source")}
    steps, images = (int(number) if (number := record.pop(name)) else None for name in ("steps", "images"))
    secondary = record.pop("secondary") == "yes"
    values = {name: float(value) for name, value in record.items() if value}
    return PublishedRow(**text, steps=steps, images=images, values=values, secondary=secondary)


def published(protocol: str, data: str) -> tuple[PublishedRow, ...]:
    """The published rows of an image set under one protocol, or another that takes their metrics in the same way.

    Raises:
        UsageError: there are none; names the protocols that have some for this set, or the sets that have some.
    """
    asked = get_protocol(protocol)
    of_set = [row for row in published_rows() if row.data == data]
    if not of_set:
        raise unknown_name("set with published numbers", data, {row.data for row in published_rows()})
    rows = tuple(row for row in of_set if row.is_under(asked))
    if not rows:
        others = ", ".join(dict.fromkeys(row.protocol for row in of_set))
        under = ", ".join(dict.fromkeys(row.data for row in published_rows() if row.is_under(asked)))
        raise UsageError(
            f"no published numbers for {data} under {asked.name}, there are some under {others}"
            + (f", and under {asked.name} of {under}" if under else "")
            + "; numbers of different protocols cannot be compared"
        )
    return rows
