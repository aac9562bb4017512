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


class LatentDataModule(SRDataModule):
    """Latents and tags of a folder that write_latents has written. The batch's hq is empty.

    `vae` identifies the autoencoder that encoded them (see megasr.files.identify_folder).

    Args:
        folder: of the latents.

    Raises:
        MegaSRError: a file is missing or damaged, or the files do not fit each other.
    """

    def __init__(
        self, folder: str, batch_size: int = 32, train_samples: int = 1024, eval_samples: int = 64,
        num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        path = Path(folder)
        absent = [name for name in ("train.npy", "eval.npy", "tags.json", "card.json") if not (path / name).is_file()]
        if absent:
            raise MegaSRError(f"data.folder {folder} lacks {', '.join(absent)}: its latents have to be encoded first")
        try:
            self.arrays = {split: np.load(path / f"{split}.npy", mmap_mode="r") for split in SPLITS}
            self.tags, card = (json.loads((path / name).read_text()) for name in ("tags.json", "card.json"))
            numbers_differ = any(len(self.arrays[split]) != len(self.tags[split]) for split in SPLITS)
            self.fingerprint, self.vae = card["fingerprint"], card["vae"]
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise MegaSRError(f"data.folder {folder} is damaged ({error}): encode its latents again") from error
        if numbers_differ:
            raise MegaSRError(f"data.folder {folder}: the numbers of latents and of tags differ")
        super().__init__(
            scale_factor=1, batch_size=batch_size, train_samples=train_samples, num_workers=num_workers, seed=seed,
            eval_samples=min(eval_samples, len(self.arrays["eval"])),
        )  # fmt: skip

    def train_sample(self, draw: int) -> Sample:
        index = shuffled(draw, len(self.arrays["train"]), self.seed)
        return self._sample("train", index, f"latent/{index}/{draw}")

    def eval_sample(self, index: int) -> Sample:
        return self._sample("eval", index, f"eval-latent/{index}")

    def _sample(self, split: str, index: int, key: str) -> Sample:
        latents = torch.from_numpy(self.arrays[split][index].astype(np.float32))
        return Sample(key, np.empty((0, 0, 3), np.uint8), self.tags[split][index], latents=latents)

    def order_fingerprint(self) -> str:
        return f"{super().order_fingerprint()} of {self.fingerprint}, encoded by {self.vae}"


def write_latents(
    folder: Path, splits: dict[str, Iterable[tuple[torch.Tensor, list[str]]]], card: dict[str, Any]
) -> None:
    """Write a set from batches of latents (B, C, h, w) and their tags.

    Args:
        folder: where to.
        splits: batches of `train` and of `eval`.
        card: `fingerprint` of the pictures, and `vae`, which identifies the folder of the autoencoder.

    Raises:
        UsageError: a split is empty.
    """
    tags: dict[str, list[str]] = {}
    with write_whole_folder(folder) as written:
        for split in SPLITS:
            batches = [(latents.half().cpu().numpy(), words) for latents, words in splits[split]]
            if not batches:
                raise UsageError(f"there are no latents for {split}")
            np.save(written / f"{split}.npy", np.concatenate([array for array, _ in batches]))
            tags[split] = [word for _, words in batches for word in words]
        (written / "tags.json").write_text(json.dumps(tags))
        (written / "card.json").write_text(json.dumps(card, indent=2) + "\n")
