"""Latents that were encoded beforehand: every one once before any comes again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.encoded import LatentDataModule, write_latents
from megasr.errors import MegaSRError, UsageError

SMALL = {"batch_size": 2, "train_samples": 6}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Latents 0 to 4, all of whose values are their number, and two for evaluation."""
    batches = [(torch.full((count, 3, 4, 4), 0.0) + torch.tensor(first).float(), [f"tag {first}"] * count)
               for first, count in ((0, 1), (1, 1), (2, 1), (3, 1), (4, 1))]  # fmt: skip
    write_latents(tmp_path / "set", {"train": batches, "eval": batches[:2]}, {"fingerprint": "numbers", "vae": "v"})
    return tmp_path / "set"


def test_every_latent_once_with_its_tag_before_any_comes_again(folder: Path) -> None:
    data = LatentDataModule(str(folder), **SMALL)
    samples = [data.train_sample(draw) for draw in range(10)]
    numbers = [int(sample.latents.mean()) for sample in samples]
    assert sorted(numbers[:5]) == sorted(numbers[5:]) == [0, 1, 2, 3, 4]
    other = LatentDataModule(str(folder), seed=1, **SMALL)
    assert numbers != [int(other.train_sample(draw).latents.mean()) for draw in range(10)]
    assert all(sample.tags == f"tag {number}" for sample, number in zip(samples, numbers, strict=True))
    assert len({sample.key for sample in samples}) == 10
    assert [int(data.eval_sample(index).latents.mean()) for index in range(data.num_eval())] == [0, 1]
    assert LatentDataModule(str(folder), eval_samples=1, **SMALL).num_eval() == 1


def test_a_set_of_other_latents_is_another_order(folder: Path) -> None:
    before = LatentDataModule(str(folder), **SMALL).order_fingerprint()
    (folder / "card.json").write_text(json.dumps({"fingerprint": "others", "vae": "v"}))
    assert LatentDataModule(str(folder), **SMALL).order_fingerprint() != before


def test_a_set_that_is_not_whole_is_refused(folder: Path) -> None:
    tags = json.loads((folder / "tags.json").read_text())
    (folder / "tags.json").write_text(json.dumps(tags | {"train": tags["train"][1:]}))
    with pytest.raises(MegaSRError, match="the numbers of latents and of tags differ"):
        LatentDataModule(str(folder), **SMALL)
    (folder / "eval.npy").unlink()
    with pytest.raises(MegaSRError, match="lacks eval.npy: its latents have to be encoded first"):
        LatentDataModule(str(folder), **SMALL)


def test_arrays_of_objects_run_nothing(folder: Path) -> None:
    np.save(folder / "train.npy", np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(MegaSRError, match="is damaged .(Object arrays|Array can't be memory-mapped)"):
        LatentDataModule(str(folder), **SMALL)


@pytest.mark.parametrize("name", ["train.npy", "eval.npy", "tags.json", "card.json"])
def test_a_damaged_file_is_named_as_such(name: str, folder: Path) -> None:
    for content in ((folder / name).read_bytes()[:-2], b"[]", b""):
        (folder / name).write_bytes(content)
        with pytest.raises(MegaSRError, match=r"data.folder .*set is damaged \(.*\): encode its latents again"):
            LatentDataModule(str(folder), **SMALL)


def test_an_empty_split_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no latents for train"):
        write_latents(tmp_path / "set", {"train": [], "eval": []}, {})
    assert not (tmp_path / "set").exists()
