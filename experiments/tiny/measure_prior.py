"""What the tiny prior can do: its autoencoder, its CLIP, whether it draws what the words say, and samples to look at.

    python -m experiments.tiny.measure_prior --output runs/prior
    python -m experiments.tiny.measure_prior --parts text --prompts 8 --prior runs/tiny/prior

Everything is measured on scenes of EVAL_SEED and on the evaluation photographs, which no training sees. A part that is
measured again replaces its entry in <output>/prior.json.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torchmetrics.functional.classification import binary_average_precision

from data_pipelines.data_module import EVAL_SEED
from data_pipelines.degradations.presets import get_degradation
from data_pipelines.photos import EVAL_PHOTOS, grid_crops, load_photo
from data_pipelines.scenes.materials import MATERIALS
from data_pipelines.scenes.rendering import Scene, render_scene
from experiments.benchmarks.record import cpu_name
from experiments.tiny import text_control
from experiments.tiny.pictures import (
    MATERIAL_PROMPTS,
    NOISE_SEED,
    NUM_STEPS,
    SCENE_PROMPTS,
    SIZE_PX,
    generate,
    reconstruct,
    sheet,
)  # fmt: skip
from megasr.evaluation.intervals import mean_intervals, paired_bootstrap
from megasr.files import write_whole
from megasr.images import from_uint8, resize, to_uint8, upsample_lq, write_png
from megasr.prior import Prior, load_prior
from megasr.provenance import provenance
from megasr.rng import numpy_generator

PARTS = ("autoencoder", "clip", "text", "samples")
SCALE_FACTOR = 4
SCENES, CROPS_PER_PHOTO, TAGGED_SCENES, TRAIN_SCENES = 64, 6, 200, 300
DEGRADATION = "realesrgan_strong"
TAG_SHARE = 0.01  # a material is in a picture when it covers this share of it
CERTAIN = 0.5  # probability above which a material counts as predicted
RESAMPLES, BATCH_SIZE = 10_000, 50
CANDIDATES = tuple(material.name for material in MATERIALS if material.name != "sky")
_COLUMN = [i for i, material in enumerate(MATERIALS) if material.name != "sky"]
SCORES = ("top1", "top3_precision", "precision", "recall", "mean_average_precision")


def psnr(images: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) PSNR in dB over all RGB values of each pair of uint8 pictures."""
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(images, references, strict=True)]
    return 10 * np.log10(255**2 / np.asarray(errors))


def measure_autoencoder(prior: Prior, output: Path) -> dict[str, Any]:
    """PSNR of decode(encode(hq)) beside bicubic x4, on held-out scenes and photographs; writes a sheet."""
    scenes = {f"eval-scene/{i}": render_scene(i, EVAL_SEED, SIZE_PX).hq for i in track(range(SCENES), "rendering")}
    photos = {}
    for photo in EVAL_PHOTOS:
        image = load_photo(photo.name)
        for top, left in grid_crops(image.shape[0], image.shape[1], SIZE_PX, CROPS_PER_PHOTO):
            photos[f"{photo.name}/{top}-{left}"] = image[top : top + SIZE_PX, left : left + SIZE_PX]
    results, examples = {}, []
    for name, images in (("scenes", scenes), ("photographs", photos)):
        hq = np.stack(list(images.values()))
        lq = from_uint8(to_uint8(resize(from_uint8(hq), SIZE_PX // SCALE_FACTOR, SIZE_PX // SCALE_FACTOR)))
        decoded = reconstruct(prior, hq)
        results[name] = _compare(list(images), hq, decoded, to_uint8(upsample_lq(lq, SCALE_FACTOR)))
        examples += list(zip(images, hq, decoded, strict=True))[:: -(-len(images) // 4)]
    captions = [*(key for key, _, _ in examples), *(f"{psnr([b], [a])[0]:.1f} dB" for _, a, b in examples)]
    tiles = [*(hq for _, hq, _ in examples), *(decoded for _, _, decoded in examples)]
    write_png(sheet(tiles, captions, len(examples)), output / "reconstructions.png")
    rows = [
        (f"{name}, {method}", f"{values['psnr']:.2f}", _span(values["interval"]), f"{values['pooled_psnr']:.2f}")
        for name, entry in results.items()
        for method, values in entry["methods"].items()
    ]
    _print("PSNR in RGB (dB)", ("on, by", "mean", "95 % interval", "pooled"), rows)
    return results


def _compare(keys: Sequence[str], hq: np.ndarray, *images: Sequence[np.ndarray]) -> dict[str, Any]:
    """PSNR of the autoencoder and of bicubic, and by how much the first is better."""
    values = np.stack([psnr(method, list(hq)) for method in images], axis=1)
    intervals = mean_intervals(values, keys, numpy_generator(0, "autoencoder"))
    pooled = -10 * np.log10(np.mean(10 ** (-values / 10), axis=0))
    gain = paired_bootstrap((values[:, 0] - values[:, 1])[None], keys, numpy_generator(0, "autoencoder-gain"))
    methods = {
        name: {"psnr": float(values[:, i].mean()), "interval": intervals[i], "pooled_psnr": float(pooled[i])}
        for i, name in enumerate(("autoencoder", "bicubic"))
    }
    return {"images": len(keys), "methods": methods, "gain": {"mean": gain.mean, "interval": (gain.low, gain.high)}}


def materials_of(scene: Scene) -> np.ndarray:
    """(M,) bool: which of CANDIDATES cover at least 1 % of the picture."""
    counts = np.bincount(scene.segmentation.ravel(), minlength=len(MATERIALS))
    return (counts >= TAG_SHARE * scene.segmentation.size)[_COLUMN]


def picture_counts(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """The terms of tagging_scores for each of N pictures with M candidates.

    Args:
        truth: (N, M) bool, at least one true in each row.
        probability: (N, M) in [0, 1].

    Returns:
        (N, 6): the most probable is right (0 or 1), share right of the three most probable, average precision, and
        numbers of true positives, of predictions (probability above 0.5) and of true materials.
    """
    ranked = np.argsort(-probability, axis=1, kind="stable")[:, :3]
    hits, predicted = np.take_along_axis(truth, ranked, axis=1), probability > CERTAIN
    pairs = zip(torch.from_numpy(probability), torch.from_numpy(truth).int(), strict=True)
    precisions = [float(binary_average_precision(p, t)) for p, t in pairs]
    counts = (predicted & truth).sum(1), predicted.sum(1), truth.sum(1)
    return np.stack([hits[:, 0], hits.mean(1), precisions, *counts], axis=1).astype(float)


def tagging_scores(counts: np.ndarray) -> np.ndarray:
    """(5,) SCORES of zero-shot tagging: means over pictures; precision (0 of none) and recall are pooled."""
    top1, top3, average_precision, right, predicted, true = counts.mean(0)
    return np.array([top1, top3, right / predicted if predicted else 0.0, right / true, average_precision])


def measure_clip(clip: Any, size_px: int) -> dict[str, Any]:
    """Zero-shot material tags on clean and degraded held-out scenes, beside a constant guess.

    Args:
        clip: has `probabilities(images (B, 3, H, W) in [0, 1], texts) -> (B, N)`.
        size_px: height and width of the scenes.
    """
    scenes = [render_scene(i, EVAL_SEED, size_px) for i in track(range(TAGGED_SCENES), "rendering")]
    train = [materials_of(render_scene(i, 0, size_px // 2)) for i in track(range(TRAIN_SCENES), "counting")]
    degradation, guess = get_degradation(DEGRADATION, SCALE_FACTOR), np.mean(train, axis=0)
    params = degradation.sample_params(EVAL_SEED, [f"eval-scene/{i}" for i in range(len(scenes))])
    lq = [degradation.apply_image(s.hq, p) for s, p in zip(scenes, params, strict=True)]
    truth = np.stack([materials_of(scene) for scene in scenes])
    probabilities = {
        "hq": _probabilities(clip, from_uint8(np.stack([scene.hq for scene in scenes]))),
        "lq": _probabilities(clip, upsample_lq(torch.stack(lq), SCALE_FACTOR)),
        "constant guess": np.tile(guess, (len(scenes), 1)),
    }
    results = _bootstrapped({name: picture_counts(truth, values) for name, values in probabilities.items()})
    rows = [
        (name, *(f"{value:.3f}\n{_span(entry['intervals'][score])}" for score, value in entry["scores"].items()))
        for name, entry in results.items()
    ]
    _print("Material tags, zero-shot", ("of", "top 1", "top 3", "precision", "recall", "mAP"), rows)
    about = {"images": len(scenes), "candidates": len(CANDIDATES), "guess": CANDIDATES[int(np.argmax(guess))]}
    return {**about, "of": results}


@torch.no_grad()
def _probabilities(clip: Any, images: torch.Tensor) -> np.ndarray:
    return torch.cat([clip.probabilities(part, list(CANDIDATES)) for part in images.split(BATCH_SIZE)]).cpu().numpy()


def _bootstrapped(counts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Scores with percentile intervals over pictures, and of hq minus lq on the same resamples."""
    generator, size = numpy_generator(0, "clip"), len(counts["hq"])
    chosen = [generator.integers(size, size=size - 1) for _ in range(RESAMPLES)]  # as in megasr.evaluation.intervals
    drawn = {name: np.stack([tagging_scores(values[at]) for at in chosen]) for name, values in counts.items()}
    scores = {name: tagging_scores(values) for name, values in counts.items()}
    scores["hq - lq"], drawn["hq - lq"] = scores["hq"] - scores["lq"], drawn["hq"] - drawn["lq"]
    limits = {name: np.quantile(rows, [0.025, 0.975], axis=0).T.tolist() for name, rows in drawn.items()}
    return {
        name: {"scores": dict(zip(SCORES, values.tolist(), strict=True)),
               "intervals": dict(zip(SCORES, limits[name], strict=True))}
        for name, values in scores.items()
    }  # fmt: skip


def measure_text(prior: Prior, prompts: int) -> dict[str, Any]:
    """Shares of samples whose class, material and paint are the prompt's; see text_control."""
    results = text_control.measure(
        text_control.make_references(),
        lambda texts, keys, scale: generate(prior, texts, keys, scale),
        lambda images: reconstruct(prior, images),
        prompts,
    )
    rows = [
        (name, *(f"{v['share']:.3f}\n{_span((v['low'], v['high']))}" for v in shares.values()))
        for name, shares in results["shares"].items()
    ]
    title = f"Right among {results['classes']} classes, {results['prompts']} prompts"
    _print(title, ("pictures", "class", "material", "paint"), rows)
    return results


def draw_samples(prior: Prior, output: Path) -> dict[str, Any]:
    """The sheet of samples for 24 prompts."""
    prompts = [*MATERIAL_PROMPTS, *SCENE_PROMPTS]
    write_png(sheet(generate(prior, prompts, prompts, cfg_scale=3.0), prompts, columns=6), output / "samples.png")
    print(f"samples of {len(prompts)} prompts: {output / 'samples.png'}")
    return {"prompts": prompts, "guidance_scale": 3.0, "file": "samples.png"}


def _span(interval: Sequence[float]) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def write_part(path: Path, part: str, about: dict[str, Any], results: dict[str, Any]) -> None:
    """Replace one part's results, with where they come from, in the JSON file."""
    record = json.loads(path.read_text()) if path.is_file() else {}
    record[part] = {"about": about, "results": results}
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())


def main() -> None:
    """Measure the parts that are named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="tiny", help="as `megasr fit` takes it: tiny, or a diffusers folder")
    parser.add_argument("--clip", default="tiny", help="tiny, or the export folder of `megasr pretrain`")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path, default=Path("runs/prior"))
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts of the text part")
    parser.add_argument(
        "--clip-size", type=int, default=SIZE_PX, help="height and width of the clip part's scenes in px"
    )
    parser.add_argument("--device", default="cpu", help="of the prior, as torch names it")
    args = parser.parse_args()
    from megasr.semantics.clip import load_clip

    prior = load_prior(args.prior)
    of_prior = {"prior": args.prior, "fingerprint": prior.fingerprint(), "size_px": SIZE_PX}
    of_clip = {"clip": args.clip, "degradation": DEGRADATION, "size_px": args.clip_size}
    of_samples = of_prior | {"num_steps": NUM_STEPS, "noise_seed": NOISE_SEED}
    prior.to(args.device)
    measures = {
        "autoencoder": (of_prior, lambda: measure_autoencoder(prior, args.output)),
        "clip": (of_clip, lambda: measure_clip(load_clip(args.clip), args.clip_size)),
        "text": (of_samples, lambda: measure_text(prior, args.prompts)),
        "samples": (of_samples, lambda: draw_samples(prior, args.output)),
    }
    hardware = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))}
    for part in args.parts:
        source, measure = measures[part]
        results = measure()
        about = provenance(args.device, hardware=hardware, eval_seed=EVAL_SEED, **source)
        write_part(args.output / "prior.json", part, about, results)


if __name__ == "__main__":
    main()
