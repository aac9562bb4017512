"""Golden numbers of the metrics that need no weights, on the project's own images: tests/golden/images.

hq are three scenes of an earlier renderer; sr are a bicubic restoration, a JPEG of quality 20 and a copy with noise of
12 levels. `python -m tests.golden.test_metrics` measures them anew; the commit says why a number has changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.folders import evaluate_folder
from megasr.evaluation.protocol import PROTOCOLS
from megasr.images import read_image

FILE = Path(__file__).with_name("metrics.json")
IMAGES = Path(__file__).with_name("images")
MEASURED = {"weight-free-v1": None, "whole-image-v1": ["psnr", "ssim"], "rgb-v1": ["psnr_rgb", "ssim_yiq"]}


def measure() -> dict[str, dict[str, dict[str, float]]]:
    """Protocol -> key -> metric -> value."""
    found = {}
    for name, metrics in MEASURED.items():
        rows = evaluate_folder(IMAGES / "sr", IMAGES / "hq", Evaluator(PROTOCOLS[name], metrics=metrics)).rows
        found[name] = {row["key"]: {metric: value for metric, value in row.items() if metric != "key"} for row in rows}
    return found


@pytest.mark.golden
def test_every_number_is_the_stored_one():
    stored, found = json.loads(FILE.read_text())["numbers"], measure()
    assert found.keys() == stored.keys()
    for protocol, rows in found.items():
        assert rows.keys() == stored[protocol].keys()
        for key, row in rows.items():
            assert row == pytest.approx(stored[protocol][key], rel=1e-4, abs=1e-5), (protocol, key)


@pytest.mark.golden
@pytest.mark.parametrize("key", ["bicubic", "jpeg", "noise"])
def test_the_stored_psnr_and_ssim_are_those_of_other_libraries(key: str):
    """NumPy and scikit-image on the Y of limited-range YCbCr (Y = 16 + 65.481 R + 128.553 G + 24.966 B, BT.601)."""
    from skimage.metrics import structural_similarity

    stored = json.loads(FILE.read_text())["numbers"]
    sr, hq = (read_image(IMAGES / side / f"{key}.png") / 255 for side in ("sr", "hq"))
    y = [16 + image @ [65.481, 128.553, 24.966] for image in (sr, hq)]
    psnr = 10 * np.log10(255**2 / np.square(y[0] - y[1]).mean())
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    ssim = structural_similarity(*(np.round(image) for image in y), **options)
    rgb = 10 * np.log10(1 / np.square(sr - hq).mean())
    assert stored["whole-image-v1"][key]["psnr"] == pytest.approx(psnr, abs=1e-4)
    # Where structure is inverted, pyiqa counts 0 and scikit-image a negative number.
    assert stored["whole-image-v1"][key]["ssim"] == pytest.approx(ssim, abs=2e-4)
    assert stored["weight-free-v1"][key]["psnr_y"] == stored["whole-image-v1"][key]["psnr"]
    assert stored["rgb-v1"][key]["psnr_rgb"] == pytest.approx(rgb, abs=1e-4)


if __name__ == "__main__":
    from megasr.provenance import versions

    numbers = measure()
    if FILE.exists():
        before = json.loads(FILE.read_text())["numbers"]
        for protocol, rows in numbers.items():
            for key, row in rows.items():
                old = before.get(protocol, {}).get(key, {})
                for metric, value in row.items():
                    print(f"{protocol:<16} {key:<8} {metric:<9} {old.get(metric)} -> {value}")
    FILE.write_text(json.dumps({"made_with": versions(), "numbers": numbers}, indent=1) + "\n")
