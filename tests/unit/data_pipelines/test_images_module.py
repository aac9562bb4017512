"""Images to evaluate on: pairs as they are, or hq that a degradation damages; every parameter has its effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipelines.data_module import SRDataModule
from data_pipelines.datamodules import ImagesDataModule
from megasr.errors import UsageError
from megasr.images import write_png
from tests.helpers.shard_sets import encoded, make_shards, pixels


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of 60x72 px and of 40x40 px, the same lq elsewhere, and hq of 62x75 px alone in a folder and in shards."""
    root = tmp_path_factory.mktemp("images")
    for number, (height, width) in enumerate(((60, 72), (40, 40))):
        write_png(pixels(number, height, width), root / "pairs" / "hq" / f"{number}.png")
        write_png(pixels(number, height // 4, width // 4), root / "pairs" / "lq" / f"{number}.png")
        write_png(pixels(9, height // 4, width // 4), root / "lq2" / f"{number}.png")
        write_png(pixels(number, 62, 75), root / "hq" / f"{number}.png")
    make_shards(root / "shards", [2], lambda n: (f"s{n}", {"png": encoded(pixels(n, 62, 75))}))
    return root


def _batches(data: SRDataModule) -> list[dict[str, Any]]:
    data.setup("validate")
    return [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]  # type: ignore[misc]


def test_pairs_are_taken_whole_and_as_they_are(root: Path) -> None:
    data = ImagesDataModule(str(root / "pairs"))
    batches = _batches(data)
    assert data.eval_keys() == [key for batch in batches for key in batch["keys"]] == ["0", "1"]
    assert [tuple(batch["hq"].shape[-2:]) for batch in batches] == [(60, 72), (40, 40)]
    assert [tuple(batch["lq"].shape[-2:]) for batch in batches] == [(15, 18), (10, 10)]
    other = _batches(ImagesDataModule(str(root / "pairs" / "hq"), lq_root=str(root / "lq2")))
    assert other[0]["hq"].equal(batches[0]["hq"]) and not other[0]["lq"].equal(batches[0]["lq"])


@pytest.mark.parametrize("place", ["hq", "shards"])
def test_hq_is_damaged_and_trimmed_to_whole_pixels_of_lq(root: Path, place: str) -> None:
    (first, _), (again, _) = (_batches(ImagesDataModule(str(root / place), degradation="bicubic")) for _ in range(2))
    assert tuple(first["hq"].shape[-2:]) == (60, 72) and tuple(first["lq"].shape[-2:]) == (15, 18)
    assert first["lq"].equal(again["lq"]), "the same every time"
    strong, _ = _batches(ImagesDataModule(str(root / place), degradation="realesrgan_strong"))
    assert not strong["lq"].equal(first["lq"])
    halved, _ = _batches(ImagesDataModule(str(root / place), degradation="bicubic", scale_factor=2))
    assert tuple(halved["lq"].shape[-2:]) == (31, 37)


def test_a_crop_is_the_centre_and_lets_images_be_batched(root: Path) -> None:
    data = ImagesDataModule(str(root / "pairs"), eval_crop_size_px=32, batch_size=2, num_workers=1)
    assert data.val_dataloader().num_workers == 1
    (batch,) = _batches(data)
    assert tuple(batch["hq"].shape) == (2, 3, 32, 32) and tuple(batch["lq"].shape) == (2, 3, 8, 8)


def test_what_cannot_be_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="lq_root has lq: data.degradation would replace them"):
        ImagesDataModule(str(root / "hq"), lq_root=str(root / "lq2"), degradation="bicubic")
    with pytest.raises(UsageError, match="do not make pairs of x2"):
        ImagesDataModule(str(root / "pairs"), scale_factor=2)
    with pytest.raises(UsageError, match="images to evaluate on alone"):
        ImagesDataModule(str(root / "pairs")).setup("fit")
