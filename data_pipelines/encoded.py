"""Latents that were encoded beforehand, with their tags: a text-to-image model trains on them without an autoencoder.

A set is a folder: train.npy and eval.npy (N, C, h, w) float16, tags.json with a list of tags for each, and card.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.data_module import SRDataModule
from data_pipelines.mixture import shuffled
from data_pipelines.samples import Sample
from megasr.errors import MegaSRError, UsageError
from megasr.files import write_whole_folder

SPLITS = ("train", "eval")
_NO_IMAGE = np.empty((0, 0, 3), np.uint8)


class LatentDataModule(SRDataModule):
    """Latents and tags of a folder that write_latents has written; every latent once before any comes again.

    The batch's hq is empty. `vae` identifies the autoencoder that encoded (see megasr.files.identify_folder).

    Args:
        folder: of the latents.
        batch_size: latents per batch and device.
        train_samples: draws per epoch, rounded down to whole batches.
        eval_samples: size of the evaluation set at most.
        num_workers: loader processes; 0 loads in the main process.
        seed: of the order.

    Raises:
        MegaSRError: a file is missing or damaged, or the files do not fit each other.
    """

    def __init__(
        self,
        folder: str,
        batch_size: int = 32,
        train_samples: int = 1024,
        eval_samples: int = 64,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        path = Path(folder)
        absent = [name for name in ("train.npy", "eval.npy", "tags.json", "card.json") if not (path / name).is_file()]
        if absent:
            raise MegaSRError(f"data.folder {folder} lacks {', '.join(absent)}: its latents have to be encoded first")
        try:
            self.arrays = {split: np.load(path / f"{split}.npy", mmap_mode="r") for split in SPLITS}
            self.tags = json.loads((path / "tags.json").read_text())
            numbers_differ = any(len(self.arrays[split]) != len(self.tags[split]) for split in SPLITS)
            card = json.loads((path / "card.json").read_text())
            self.fingerprint, self.vae = card["fingerprint"], card["vae"]
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise MegaSRError(f"data.folder {folder} is damaged ({error}): encode its latents again") from error
        if numbers_differ:
            raise MegaSRError(f"data.folder {folder}: the numbers of latents and of tags differ")
        super().__init__(
            scale_factor=1,
            batch_size=batch_size,
            train_samples=train_samples,
            eval_samples=min(eval_samples, len(self.arrays["eval"])),
            num_workers=num_workers,
            seed=seed,
        )

    def train_sample(self, draw: int) -> Sample:
        index = shuffled(draw, len(self.arrays["train"]), self.seed)
        return self._sample("train", index, f"latent/{index}/{draw}")

    def eval_sample(self, index: int) -> Sample:
        return self._sample("eval", index, f"eval-latent/{index}")

    def _sample(self, split: str, index: int, key: str) -> Sample:
        latents = torch.from_numpy(self.arrays[split][index].astype(np.float32))
        return Sample(key, _NO_IMAGE, self.tags[split][index], latents=latents)

    def order_fingerprint(self) -> str:
        """What the order of the draws depends on."""
        return f"{super().order_fingerprint()} of {self.fingerprint}, encoded by {self.vae}"


def write_latents(
    folder: Path, splits: dict[str, Iterable[tuple[torch.Tensor, list[str]]]], card: dict[str, Any]
) -> None:
    """Write a set from batches of latents (B, C, h, w) with their tags, `train` and `eval`.

    Args:
        folder: where to.
        splits: batches of each.
        card: `fingerprint` of the pictures, and `vae`, which identifies the folder of the autoencoder.

    Raises:
        UsageError: a split is empty.
    """
    tags: dict[str, list[str]] = {}
    with write_whole_folder(folder) as written:
        for split in SPLITS:
            arrays: list[np.ndarray] = []
            tags[split] = []
            for latents, words in splits[split]:
                arrays.append(latents.half().cpu().numpy())
                tags[split] += words
            if not arrays:
                raise UsageError(f"there are no latents for {split}")
            np.save(written / f"{split}.npy", np.concatenate(arrays))
        (written / "tags.json").write_text(json.dumps(tags))
        (written / "card.json").write_text(json.dumps(card, indent=2) + "\n")
