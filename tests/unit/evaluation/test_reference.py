"""Published numbers: as printed, complete, and never under another protocol."""

from __future__ import annotations

from collections import Counter

import pytest

from megasr.errors import UsageError
from megasr.evaluation.protocol import get_protocol, published, published_rows

_RANGES = {
    "psnr": (15, 35),
    "ssim": (0.4, 1),
    "lpips": (0.1, 0.6),
    "dists": (0.1, 0.4),
    "fid": (20, 200),
    "niqe": (3, 9),
    "musiq": (45, 75),
    "maniqa": (0.25, 0.55),
    "maniqa-pipal": (0.45, 0.7),
    "clipiqa": (0.5, 0.75),
    "clipiqa+": (0.6, 0.8),
    "liqe": (3, 5),
    "qalign": (3.5, 4.5),
    "qualiclip": (0.5, 0.8),
}
_CROPS = "stablesr-crops-v1"


@pytest.mark.parametrize(
    ("protocol", "data", "method", "source", "values"),
    [
        (_CROPS, "realsr", "SeeSR-50", "OSEDiff", {"psnr": 25.18, "fid": 125.55, "maniqa-pipal": 0.6442}),
        (_CROPS, "drealsr", "OSEDiff-1", "OSEDiff", {"ssim": 0.7835, "niqe": 6.4902, "clipiqa": 0.6963}),
        (_CROPS, "div2k-val", "StableSR-200", "OSEDiff", {"psnr": 23.26, "dists": 0.2048, "musiq": 65.92}),
        (_CROPS, "realsr", "Real-ESRGAN", "OSEDiff", {"psnr": 25.69, "ssim": 0.7616, "musiq": 60.18}),
        (_CROPS, "realsr", "SeeSR-50", "TSD-SR", {"psnr": 25.21, "fid": 125.10, "maniqa-pipal": 0.6443}),
        (_CROPS, "drealsr", "SeeSR-50", "TSD-SR", {"lpips": 0.3141, "musiq": 64.74, "clipiqa": 0.6893}),
        (_CROPS, "realsr", "AddSR-4", "TSD-SR", {"psnr": 23.33, "musiq": 71.49}),
        (_CROPS, "reallr200-crop128", "OSEDiff", "TADSR", {"musiq": 69.041, "clipiqa": 0.6792}),
        ("dreamclear-1024-v1", "reallq250", "SUPIR", "DreamClear", {"niqe": 3.6336, "maniqa": 0.3926, "musiq": 66.03}),
        ("dreamclear-1024-v1", "reallq250", "SeeSR", "LucidFlux", {"niqe": 4.4383, "musiq": 70.38}),
        ("dreamclear-1024-v1", "realsr-1024", "SeeSR", "DreamClear", {"psnr": 24.66, "fid": 71.92, "clipiqa": 0.6839}),
        ("whole-image-v2", "realsr-whole", "StrSR-F", "StrSR", {"psnr": 23.77, "niqe": 3.8090, "qualiclip": 0.7134}),
        ("whole-image-v2", "realsr-whole", "SUPIR", "StrSR", {"ssim": 0.6993, "dists": 0.1982, "qalign": 4.0683}),
        ("whole-image-v2", "reallq250", "TSD-SR", "StrSR", {"niqe": 3.4879, "maniqa-pipal": 0.5829, "qalign": 4.1694}),
        ("whole-image-v2", "realsr-whole", "StableSR", "D3SR", {"psnr": 26.28}),  # as whole-image-v1 has it
        (_CROPS, "realsr", "GDPO-SR-1", "GDPO-SR", {"psnr": 25.48, "dists": 0.1980, "musiq": 69.42}),
        ("stablesr-crops-v2", "realsr", "TUDSR-2", "TUDSR", {"lpips": 0.3217, "liqe": 4.37, "clipiqa+": 0.7135}),
        ("whole-image-v1", "realsr-whole", "StableSR", "D3SR", {"psnr": 26.28, "lpips": 0.2622, "musiq": 60.53}),
    ],
)
def test_as_printed(protocol: str, data: str, method: str, source: str, values: dict[str, float]) -> None:
    (row,) = [r for r in published(protocol, data) if r.label == method and r.source.startswith(source)]
    assert {name: row.values[name] for name in values} == values


def test_every_row_is_of_its_protocol_and_within_what_the_field_sees() -> None:
    rows = published_rows()
    assert max(Counter((row.protocol, row.data, row.method, row.source) for row in rows).values()) == 1
    for row in rows:
        assert row.values
        assert set(row.values) <= set(get_protocol(row.protocol).metric_names), row
        assert all(_RANGES[name][0] < value < _RANGES[name][1] for name, value in row.values.items()), row


def test_tables_are_complete() -> None:
    table = [row for row in published_rows() if row.source == "OSEDiff (2406.08177) Table 1"]
    methods = {"StableSR-200", "DiffBIR-50", "SeeSR-50", "PASD-20", "ResShift-15", "SinSR-1", "OSEDiff-1"}
    for data in ("div2k-val", "drealsr", "realsr"):
        assert {row.label for row in table if row.data == data} == methods
    assert {len(row.values) for row in table} == {9}
    table = [row for row in published_rows() if row.source.startswith("StrSR")]
    assert [len([row for row in table if row.data == data]) for data in ("realsr-whole", "reallq250")] == [15, 13]
    assert {len(row.values) for row in table} == {9, 4}
    assert {row.source.split(" ")[0] for row in published_rows() if row.secondary} == {
        "GDPO-SR", "ODTSR", "SRSR", "DNF-SR", "TUDSR",
    }  # fmt: skip
    assert len(published_rows()) == 92


@pytest.mark.parametrize(
    ("protocol", "data", "says"),
    [
        (
            "weight-free-v1",
            "realsr",
            "under weight-free-v1, there are some under stablesr-crops-v1, stablesr-crops-v2; numbers of different",
        ),
        (
            "whole-image-v1",
            "realsr",
            "under stablesr-crops-v1, stablesr-crops-v2, and under whole-image-v1 of realsr-whole, div2k-val-whole;",
        ),
        (_CROPS, "reallq250", "there are some under dreamclear-1024-v1, whole-image-v2, and under"),
        (_CROPS, "reallr200", "unknown set with published numbers 'reallr200'; did you mean .*reallr200-crop128"),
        ("stablesr-crop-v1", "realsr", "did you mean stablesr-crops-v1"),
    ],
)
def test_nothing_under_another_protocol(protocol: str, data: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        published(protocol, data)
