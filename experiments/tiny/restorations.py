"""What a shipped adapter restores, with and without its maps: `python -m experiments.tiny.restorations --help`.

One row for each photograph and each rendered scene, which no training sees: lq, bicubic, sr without maps, sr with all,
hq; LPIPS and DISTS below, where their weights are on this machine, else FSIM.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

import torch

from experiments.guidance.pictures import SCALE_FACTOR, batches, photographs, scenes
from experiments.tiny.pictures import sheet
from megasr import MegaSRPipeline
from megasr.evaluation.metrics import ImageMetric, choose_metrics
from megasr.evaluation.protocol import get_protocol
from megasr.images import to_uint8, upsample_lq, write_png

_PROTOCOL = get_protocol("paired-v1")
_LABELS = ("lq", "bicubic", "no maps", "all maps", "hq")


def main() -> None:
    """Restore, measure, write one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a PNG")
    parser.add_argument("--checkpoint", default="tiny-one-step", help="default: tiny-one-step")
    parser.add_argument("--photographs", type=Path, help="folder (default: the shipped ones)")
    parser.add_argument("--count", type=int, default=3, help="photographs (default: 3)")
    parser.add_argument("--scenes", type=int, default=1, help="rendered scenes (default: 1)")
    parser.add_argument("--size", type=int, default=256, help="px of the crops' sides (default: 256)")
    parser.add_argument("--degradation", default="realesrgan_strong", help="what makes lq (default: realesrgan_strong)")
    options = parser.parse_args()
    pipeline = MegaSRPipeline.from_checkpoint(options.checkpoint)
    off = dict.fromkeys(pipeline.guidance, 0.0)
    specs, _ = choose_metrics(_PROTOCOL, None, has_hq=True, weights_dir=None, missing="skip")
    known = {spec.name: spec for spec in specs}
    names = ["lpips", "dists"] if {"lpips", "dists"} <= known.keys() else ["fsim"]
    metrics = [ImageMetric(known[name], _PROTOCOL, torch.device("cpu"), None) for name in names]
    tiles, captions = [], []
    images = photographs(options.photographs, options.count, options.degradation, options.size)
    rendered = scenes(options.scenes, options.degradation, options.size)
    for batch in chain(batches(images, "photographs"), batches(rendered, "scenes")):
        key, lq, hq = batch["keys"][0], batch["lq"], batch["hq"]
        plain, full = (
            torch.as_tensor(pipeline(lq, keys=[key], guidance=strengths, output_type="pt").images)
            for strengths in (off, None)
        )
        seen = upsample_lq(lq, SCALE_FACTOR), plain, full
        nearest = lq.repeat_interleave(SCALE_FACTOR, -1).repeat_interleave(SCALE_FACTOR, -2)
        tiles += [to_uint8(image[0]) for image in (nearest, *seen, hq)]
        scores = [
            " ".join(f"{name} {m(sr, hq, key, {}):.3f}" for name, m in zip(names, metrics, strict=True)) for sr in seen
        ]
        captions += [f"{label} {score}" for label, score in zip(_LABELS, [key, *scores, ""], strict=True)]
    write_png(sheet(tiles, captions, columns=len(_LABELS)), options.output)


if __name__ == "__main__":
    main()
