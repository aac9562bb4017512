"""Is realesrgan_strong as strong as Real-ESRGAN's own degradation? Statistics of lq over many draws, side by side.

    BASICSR_DIR=... REALESRGAN_DIR=... python -m experiments.benchmarks.degradation_statistics --output statistics.json

Both degrade the same photographs, theirs one image at a time, so that every draw has its own parameters as ours has. Of
each lq: PSNR of its bicubic enlargement against hq, how much of hq's sharpness it keeps, and its noise (the robust
deviation of the diagonal detail, Donoho and Johnstone 1994). A row gives both means, the difference in standard errors,
and the Kolmogorov-Smirnov distance with its p-value.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ks_2samp

from data_pipelines.degradations.presets import get_degradation
from data_pipelines.filters import sharpness
from data_pipelines.photos import load_photo
from experiments.benchmarks.realesrgan_pipeline import RealESRGAN, missing_checkouts
from experiments.benchmarks.record import publish
from megasr.images import from_uint8, to_uint8, upsample_lq

PHOTOS, SIZE_PX, SCALE_FACTOR = ("astronaut", "coffee", "rocket", "motorcycle"), 256, 4


def measure(lq: torch.Tensor, hq: np.ndarray) -> dict[str, float]:
    """PSNR in dB, log10 of the sharpness that is kept, and noise of 255, of lq (3, h, w) in [0, 1]."""
    lq_up = upsample_lq(lq[None], SCALE_FACTOR)[0]
    mse = float((lq_up - from_uint8(hq)).square().mean())
    pixels = to_uint8(lq)
    grey = pixels.astype(float).mean(2)
    diagonal = (grey[::2, ::2] - grey[1::2, ::2] - grey[::2, 1::2] + grey[1::2, 1::2]) / 2
    return {
        "psnr_db": -10 * np.log10(mse),
        "log10_sharpness": np.log10(sharpness(pixels) + 1) - np.log10(sharpness(hq) + 1),
        "noise": float(np.median(np.abs(diagonal)) / 0.6745),
    }


def draw_ours(hq: np.ndarray, seed: int, draws: int) -> list[dict[str, float]]:
    """The `cpu` back end."""
    degradation = get_degradation("realesrgan_strong", SCALE_FACTOR)
    params = degradation.sample_params(seed, [f"{i}" for i in range(draws)])
    return [measure(degradation.apply_image(hq, one), hq) for one in params]


def draw_theirs(hq: np.ndarray, seed: int, draws: int) -> list[dict[str, float]]:
    """Real-ESRGAN's feed_data."""
    theirs = RealESRGAN(hq, torch.device("cpu"), draws, seed)
    feed = theirs.degrade(1, sharpen=False)
    found = []
    for number in range(draws):
        feed(theirs.batch(number, 1))
        found.append(measure(feed.__self__.lq[0], hq))  # type: ignore[attr-defined]
    return found


def compare(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Per statistic: both means and deviations, difference in standard errors, Kolmogorov-Smirnov."""
    rows = {}
    for name in ours[0]:
        a, b = (np.array([row[name] for row in rows_of]) for rows_of in (ours, theirs))
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        distance, p_value = ks_2samp(a, b)
        numbers = {"ours": a.mean(), "theirs": b.mean(), "ours_sd": a.std(), "theirs_sd": b.std()}
        numbers |= {"difference_in_errors": (a.mean() - b.mean()) / error, "ks": distance, "p": p_value}
        rows[name] = {key: round(float(value), 4) for key, value in numbers.items()}
    return rows


def main() -> None:
    """Parse, draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=150, help="draws per photograph and side")
    parser.add_argument("--output", type=Path, help="file for the JSON that is printed")
    arguments = parser.parse_args()
    if missing := missing_checkouts():
        sys.exit(f"needs Real-ESRGAN's own pipeline: {' and '.join(missing)} name no folder")
    warnings.filterwarnings("ignore")  # those of Real-ESRGAN's imports
    ours, theirs = [], []
    for seed, photo in enumerate(PHOTOS):  # every photograph has draws of its own: repeated ones would count double
        hq = np.ascontiguousarray(load_photo(photo)[40 : 40 + SIZE_PX, 100 : 100 + SIZE_PX])
        ours += draw_ours(hq, seed, arguments.draws)
        theirs += draw_theirs(hq, seed, arguments.draws)
    settings = {"photos": list(PHOTOS), "size_px": SIZE_PX, "scale_factor": SCALE_FACTOR, "draws": arguments.draws}
    publish("degradation_statistics", settings, compare(ours, theirs), arguments.output)


if __name__ == "__main__":
    main()
