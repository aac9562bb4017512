"""Encode pictures of the tiny world once, for the training of the U-Net.

`python -m experiments.world.encode --vae runs/world/vae --photos runs/world/photographs --output runs/world/latents`
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn

from data_pipelines.datamodules import WorldDataModule
from data_pipelines.encoded import write_latents
from data_pipelines.samples import Sample
from data_pipelines.workers import start_worker
from megasr.console import progress_bars
from megasr.files import identify_folder
from megasr.prior import encode_images, load_autoencoder

_BATCH = 16


class _Batches(torch.utils.data.Dataset):
    """Batches of samples 0 to count - 1: images (B, 3, H, W) uint8, and tags."""

    def __init__(self, make: Callable[[int], Sample], count: int) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return -(-self.count // _BATCH)

    def __getitem__(self, batch: int) -> tuple[torch.Tensor, list[str]]:
        if batch >= len(self):
            raise IndexError(batch)
        samples = [self.make(index) for index in range(batch * _BATCH, min((batch + 1) * _BATCH, self.count))]
        images = torch.stack([torch.from_numpy(np.ascontiguousarray(sample.hq)) for sample in samples])
        return images.permute(0, 3, 1, 2), [sample.tags for sample in samples]


@torch.no_grad()
def encode(
    make: Callable[[int], Sample], count: int, vae: torch.nn.Module, workers: int = 0
) -> Iterator[tuple[torch.Tensor, list[str]]]:
    """Latents (B, C, h, w) and tags of samples 0 to count - 1, made in the order of their numbers."""
    make(0)  # scenes and photographs, which worker processes share
    device, done = next(vae.parameters()).device, 0
    loader = torch.utils.data.DataLoader(
        _Batches(make, count), batch_size=None, num_workers=workers, worker_init_fn=start_worker if workers else None
    )
    with progress_bars(BarColumn(), MofNCompleteColumn()) as progress:
        for images, tags in loader:
            images = images.to(device).float() / 255
            latents = encode_images(vae, images.contiguous(memory_format=torch.channels_last))
            done += len(tags)
            progress("encoding", done, count)
            yield latents, tags


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
    parser.add_argument("--workers", type=int, default=0, help="processes that make the pictures; 0 is this one")
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
        "train": encode(world.train_sample, arguments.count, vae, arguments.workers),
        "eval": encode(world.eval_sample, world.num_eval(), vae),
    }
    pictures = f"{world.order_fingerprint()}, {arguments.count} crops of {arguments.size} px"
    card = {"fingerprint": pictures, "vae": identify_folder(arguments.vae)}
    write_latents(arguments.output, splits, card)


if __name__ == "__main__":
    main()
