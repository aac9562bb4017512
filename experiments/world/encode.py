"""Encode pictures of the tiny world once, for the training of the U-Net.

`python -m experiments.world.encode --vae runs/world/vae --photos runs/world/photographs --output runs/world/latents`
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn

from data_pipelines.datamodules import WorldDataModule
from data_pipelines.encoded import write_latents
from data_pipelines.samples import Sample
from megasr.console import progress_bars
from megasr.files import identify_folder
from megasr.images import from_uint8
from megasr.prior import encode_images, load_autoencoder

_BATCH = 16


@torch.no_grad()
def encode(make: Callable[[int], Sample], count: int, vae: torch.nn.Module) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Latents (B, C, h, w) and tags of samples 0 to count - 1."""
    device = next(vae.parameters()).device
    with progress_bars(BarColumn(), MofNCompleteColumn()) as progress:
        for start in range(0, count, _BATCH):
            samples = [make(index) for index in range(start, min(start + _BATCH, count))]
            images = torch.stack([from_uint8(sample.hq) for sample in samples]).to(device)
            latents = encode_images(vae, images.contiguous(memory_format=torch.channels_last))
            progress("encoding", start + len(samples), count)
            yield latents, [sample.tags for sample in samples]


def main() -> None:
    """Read the arguments and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained autoencoder")
    parser.add_argument("--photos", required=True, help="folder of the photographs, with tags beside them")
    parser.add_argument("--photo-share", type=float, default=0.4, help="share of the pictures that are photographs")
    parser.add_argument("--pool", type=int, default=3000, help="scenes that are rendered")
    parser.add_argument("--size", type=int, default=256, help="height and width of the pictures in pixels")
    parser.add_argument("--scene-size", type=int, help="height and width at which scenes are rendered; as --size")
    parser.add_argument("--count", type=int, default=12000, help="pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder for the latents")
    arguments = parser.parse_args()
    world = WorldDataModule(
        scale_factor=1, degradation="none", pool=arguments.pool, photos=arguments.photos,
        photo_share=arguments.photo_share, photo_zoom=1.0, crop_size_px=arguments.size,
        eval_crop_size_px=arguments.scene_size or arguments.size, eval_samples=64,
    )  # fmt: skip
    vae = load_autoencoder(arguments.vae).requires_grad_(False).eval().to(memory_format=torch.channels_last)
    vae = vae.to("cuda" if torch.cuda.is_available() else "cpu")
    splits = {
        "train": encode(world.train_sample, arguments.count, vae),
        "eval": encode(world.eval_sample, world.num_eval(), vae),
    }
    pictures = f"{world.order_fingerprint()}, {arguments.count} crops of {arguments.size} px"
    card = {"fingerprint": pictures, "vae": identify_folder(arguments.vae)}
    write_latents(arguments.output, splits, card)


if __name__ == "__main__":
    main()
