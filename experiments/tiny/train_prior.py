"""Train the tiny prior that the package ships.

    python -m experiments.tiny.train_prior vae  --steps 2500 --output runs/tiny_prior
    python -m experiments.tiny.train_prior unet --steps 2500 --init runs/tiny_prior --output runs/tiny_prior

Data: rendered scenes with their tags and, for every fourth sample, crops of scikit-image's training photographs with
their names. Both stages keep a checkpoint that --resume continues. Time on two CPU cores: see the model card beside the
weights (megasr/assets/tiny_prior/README.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.progress import track

from data_pipelines.crops import crop_sample
from data_pipelines.photos import TRAIN_PHOTOS, load_photo
from data_pipelines.samples import Sample, collate
from data_pipelines.scenes import render_scene
from megasr.prior import save_prior
from megasr.rng import numpy_generator
from megasr.training.callbacks import EMA
from megasr.training.prior_training import PriorModule

SIZE_PX = 128
PHOTO_EVERY = 4


class PriorData(torch.utils.data.Dataset):
    """Scenes rendered once and kept in memory (50 kB each), mixed with random crops of photographs.

    Args:
        num_scenes: scenes 0 to num_scenes - 1 of the training seed.
        length: samples in all; sample i is a function of i.
        crop_size_px: random crop of the 128 px image.
    """

    def __init__(self, num_scenes: int, length: int, crop_size_px: int) -> None:
        scenes = (render_scene(i, seed=0, size_px=SIZE_PX) for i in track(range(num_scenes), "rendering scenes"))
        self.scenes = [(scene.hq, ", ".join(scene.tags)) for scene in scenes]
        self.photos = [(load_photo(photo.name), ", ".join(photo.tags)) for photo in TRAIN_PHOTOS]
        self.length = length
        self.crop_size_px = crop_size_px

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        rng = numpy_generator(0, "prior_data", index)
        pool = self.photos if index % PHOTO_EVERY == 0 else self.scenes
        image, tags = pool[int(rng.integers(len(pool)))]
        return crop_sample(Sample(str(index), image, tags), self.crop_size_px, 0, index)


def main() -> None:
    """Train one stage and write the prior as a diffusers folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("vae", "unet"))
    parser.add_argument("--output", type=Path, required=True, help="diffusers folder to write")
    parser.add_argument("--init", help="prior folder to start from (the vae stage's output for unet)")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--crop-size-px", type=int, default=64)
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--devices", type=int, default=1, help="processes (DDP); each takes --batch-size samples")
    parser.add_argument("--resume", action="store_true", help="continue from the stage's last checkpoint")
    args = parser.parse_args()
    module = PriorModule(stage=args.stage, init=args.init, learning_rate=args.learning_rate)
    data = PriorData(args.scenes, args.steps * args.batch_size * args.devices, args.crop_size_px)
    loader = torch.utils.data.DataLoader(data, args.batch_size, collate_fn=collate)
    ema = EMA(0.998)
    checkpoints = ModelCheckpoint(args.output, f"{args.stage}-{{step}}", every_n_train_steps=250, save_last=True)
    checkpoints.CHECKPOINT_NAME_LAST = f"{args.stage}-last"
    trainer = lightning.Trainer(
        max_steps=args.steps,
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        logger=False,
        callbacks=[ema, checkpoints],
        gradient_clip_val=1.0,
        enable_model_summary=False,
    )
    last = args.output / f"{args.stage}-last.ckpt"
    trainer.fit(module, loader, ckpt_path=last if args.resume and last.exists() else None)
    if trainer.is_global_zero:
        ema.swap_in(module)
        if args.stage == "vae":
            images = collate([data[i] for i in range(128)])["hq"]
            print("scaling factor", module.measure_scaling_factor(images))
        save_prior(module.prior, args.output)
        print("wrote", args.output, module.prior.fingerprint())


if __name__ == "__main__":
    main()
