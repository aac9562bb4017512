"""What the prior of 256 px can do: reconstructions, their grids, and how near samples are to the pictures of training.

    python -m experiments.world.measure --prior runs/world/prior --photos runs/bsds/val --weights runs/world/teachers
    python -m experiments.world.measure --prior runs/world/prior --latents runs/world/latents --samples 192

    autoencoder  PSNR, LPIPS, DISTS and spectral_peaks of the 256 px centres of photographs that no training sees,
                 encoded and decoded; and of latents to which noise was added as to what a diffusion model errs by
    samples      KID (1801.01401) on VGG16's features: pictures drawn for the tags of training latents (25 steps of
                 DDIM, no classifier-free guidance) against decoded training latents, and these against one another;
                 writes samples.png

A part is left out where its folder is. Numbers go to measured.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torchmetrics.image.kid import poly_mmd
from torchvision.utils import save_image

from megasr.diffusion import ddim, spaced_timesteps
from megasr.evaluation.intervals import mean_intervals
from megasr.evaluation.periodicity import spectral_peaks
from megasr.files import write_whole
from megasr.images import from_uint8, read_image
from megasr.losses.perceptual import DISTS, LPIPS, VGG16Features
from megasr.prior import Prior, load_prior
from megasr.provenance import provenance
from megasr.rng import keyed_normal, numpy_generator, torch_generator

SIZE_PX, STEPS, BATCH, SHOWN, DRAWS = 256, 25, 32, 32, 50
NOISES = (0.0, 0.15, 0.3)  # standard deviations of latents
FEATURES = ("relu3_3", "relu4_3", "relu5_3")


@torch.no_grad()
def measure_autoencoder(prior: Prior, photos: Path, weights: Path | None) -> dict[str, Any]:
    """Means with 95 % intervals over the photographs of a folder, for every noise of the latents."""
    paths = sorted(photos.glob("*.png"))
    lpips, dists, values = LPIPS(weights), DISTS(weights), {noise: [] for noise in NOISES}  # type: ignore[var-annotated]
    for path in track(paths, "reconstructing"):
        image = from_uint8(read_image(path))[None]
        top, left = ((side - SIZE_PX) // 2 for side in image.shape[-2:])
        hq = image[..., top : top + SIZE_PX, left : left + SIZE_PX]
        z = prior.encode(hq)
        error = torch.randn(z.shape, generator=torch_generator(0, "latent_noise", path.name)) * z.std()
        for noise, rows in values.items():
            sr = prior.decode(z + noise * error)
            psnr = -10 * torch.log10((sr - hq).square().mean())
            rows.append([float(psnr), float(lpips(sr, hq)), float(dists(sr, hq)), spectral_peaks(sr, hq)])
    results = {}
    for noise, rows in values.items():
        table = np.array(rows)
        spans = mean_intervals(table, [path.stem for path in paths], numpy_generator(0, "measure"))
        names = ("psnr", "lpips", "dists", "spectral_peaks")
        results[f"latent noise {noise:g}"] = {
            name: {"mean": float(mean), "interval": [float(limit) for limit in span]}
            for name, mean, span in zip(names, table.mean(0), spans, strict=True)
        }
    return {"photographs": len(paths), **results}


@torch.no_grad()
def measure_samples(prior: Prior, latents: Path, count: int, weights: Path | None, sheet: Path) -> dict[str, Any]:
    """KID of samples, and of training latents against others, on features of unit variance."""
    features = VGG16Features(FEATURES, weights)
    encoded = np.load(latents / "train.npy", mmap_mode="r")
    tags = json.loads((latents / "tags.json").read_text())["train"]
    chosen = numpy_generator(0, "samples").permutation(len(tags))
    timesteps = spaced_timesteps(STEPS, 1.0, prior.schedule.num_timesteps)

    def describe(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = prior.decode(z)
        return pictures, torch.cat([level.mean((2, 3)) for level in features(pictures)], dim=1)

    real = torch.cat([
        describe(torch.from_numpy(encoded[np.sort(rows)].astype(np.float32)))[1]
        for rows in np.array_split(chosen[: 2 * count], -(-2 * count // BATCH))
    ])  # fmt: skip
    drawn, pictures = [], []
    for rows in track(np.array_split(chosen[-count:], -(-count // BATCH)), "sampling"):
        words = prior.text_encoder([tags[row] for row in rows])
        noise = keyed_normal(0, [str(row) for row in rows], encoded.shape[1:], "measure")
        z = ddim(lambda z_t, t, words=words: prior.predict(z_t, t, words), prior.schedule, noise, timesteps)  # type: ignore[misc]
        shown, described = describe(z)
        drawn.append(described)
        pictures.append(shown[:SHOWN])
    save_image(torch.cat(pictures)[:SHOWN], sheet, nrow=8)
    mean, spread = real.mean(0), real.std(0).clamp(min=1e-6)
    real, fake = (real - mean) / spread, (torch.cat(drawn) - mean) / spread
    return {
        "samples": count,
        "kid": kid(real[:count], fake),
        "kid_of_training_latents": kid(real[:count], real[count : 2 * count]),
    }


def kid(real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
    """Mean and standard deviation of KID over draws of half of both, which have as many rows: (N, C) and (N, C)."""
    size, draw = len(fake) // 2, torch_generator(0, "kid")
    # torchmetrics' estimate takes the number of rows from the first: both are to have as many.
    values = [
        float(poly_mmd(*(rows[torch.randperm(len(rows), generator=draw)[:size]] for rows in (real, fake))))
        for _ in range(DRAWS)
    ]
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values))}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", required=True, help="folder of the prior")
    parser.add_argument("--photos", type=Path, help="folder of PNG of at least 256 px")
    parser.add_argument("--latents", type=Path, help="folder of experiments.world.encode")
    parser.add_argument("--samples", type=int, default=192, help="pictures that are drawn")
    parser.add_argument("--weights", type=Path, help="folder of LPIPS, DISTS and VGG16")
    parser.add_argument("--output", type=Path, default=Path("runs/world/measured"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    prior = load_prior(options.prior).requires_grad_(False)
    results: dict[str, Any] = {}
    if options.photos:
        results["autoencoder"] = measure_autoencoder(prior, options.photos, options.weights)
    if options.latents:
        sheet = options.output / "samples.png"
        results["samples"] = measure_samples(prior, options.latents, options.samples, options.weights, sheet)
    about = provenance("cpu", prior=options.prior, fingerprint=prior.fingerprint())
    text = json.dumps({"about": about, **results}, indent=2) + "\n"
    write_whole(options.output / "measured.json", text.encode())
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
