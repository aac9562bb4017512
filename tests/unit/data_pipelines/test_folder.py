"""Folders of images: keys, sizes, and evaluation apart from training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.datamodules import FolderDataModule
from data_pipelines.folder import FolderSource, index_folder, read_tags
from data_pipelines.samples import UnusableSampleError
from megasr.errors import MegaSRError, UsageError
from megasr.images import write_png


def write(path: Path, value: int = 0, height: int = 40, width: int = 48) -> Path:
    """An image in which every pixel differs from its neighbours."""
    rows, columns = np.mgrid[:height, :width]
    write_png(np.stack([rows, columns, np.full_like(rows, value)], axis=2).astype(np.uint8), path)
    return path


@pytest.fixture
def roots(tmp_path: Path) -> tuple[str, str]:
    for index in range(3):
        write(tmp_path / "train" / "deep" / f"{index}.png", index)
        write(tmp_path / "eval" / f"{index}.v2.png", 100 + index)
    return str(tmp_path / "train"), str(tmp_path / "eval")


def module(roots: tuple[str, str], **settings: int) -> FolderDataModule:
    return FolderDataModule(*roots, **{"crop_size_px": 32, "batch_size": 2, "train_samples": 6, **settings})


def test_keys_are_relative_paths_without_suffix(roots: tuple[str, str]) -> None:
    assert list(index_folder(roots[0])) == ["deep/0", "deep/1", "deep/2"]
    assert list(index_folder(roots[1])) == ["0.v2", "1.v2", "2.v2"]


def test_two_files_of_one_key_are_both_named(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match=r"a\.jpg and .*a\.png would both be called 'a'"):
        index_folder(tmp_path)


def test_training_on_evaluation_images_is_refused(tmp_path: Path, roots: tuple[str, str]) -> None:
    for pair in [(roots[0], roots[0]), (str(tmp_path), roots[1]), (roots[0], str(tmp_path))]:
        with pytest.raises(UsageError, match="3 images are in both train_root and eval_root"):
            module(pair)
    (tmp_path / "link").symlink_to(roots[0])
    with pytest.raises(UsageError, match="in both"):
        module((str(tmp_path / "link"), roots[0]))


def test_every_image_comes_once_before_any_comes_again(roots: tuple[str, str]) -> None:
    data = module(roots)
    names = [data.train_sample(draw).key.rsplit("/", 1)[0] for draw in range(30)]
    passes = [names[start : start + 3] for start in range(0, 30, 3)]
    assert all(sorted(one) == ["deep/0", "deep/1", "deep/2"] for one in passes)
    assert len({tuple(one) for one in passes}) > 1, "the order changes"


def test_crops_are_a_function_of_seed_and_draw(roots: tuple[str, str]) -> None:
    data, same, other = module(roots), module(roots), module(roots, seed=1)
    draws = [data.train_sample(draw) for draw in range(24)]
    assert len({sample.key for sample in draws}) == 24
    assert all(np.array_equal(same.train_sample(d).hq, sample.hq) for d, sample in reversed(list(enumerate(draws))))
    assert any(not np.array_equal(other.train_sample(d).hq, sample.hq) for d, sample in enumerate(draws))
    corners = {tuple(sample.hq[0, :, :2].min(0)) for sample in draws}
    assert len(corners) > 10, "crops come from everywhere"
    flipped = [int(sample.hq[0, 0, 1]) > int(sample.hq[0, 1, 1]) for sample in draws]
    assert 4 < sum(flipped) < 20


def test_evaluation_reads_centre_crops_in_order(roots: tuple[str, str]) -> None:
    data = module(roots, eval_samples=2)
    batches = list(data.val_dataloader())
    assert [key for batch in batches for key in batch["keys"]] == ["0.v2", "1.v2"]
    first = (batches[0]["hq"][0] * 255).round()
    assert first[:, 0, 0].tolist() == [4, 8, 100]
    assert module(roots, eval_samples=50).num_eval() == 3


@pytest.mark.parametrize(
    ("files", "tags"),
    [
        ({}, ""),
        ({"photo.txt": "dog,  green grass,\n\nred ball ,\r\n"}, "dog, green grass, red ball"),
        ({"photo.txt": "\ufeffcafé"}, "café"),
        ({"photo.txt": "  \n,"}, ""),
        ({"photo.json": '{"tags": ["dog", "ball, red", " "], "caption": "other"}'}, "dog, ball, red"),
        ({"photo.json": '{"tags": "dog,ball"}'}, "dog, ball"),
        ({"photo.json": '{"caption": "a dog\\nwith a ball", "tags": []}'}, "a dog, with a ball"),
        ({"photo.json": '{"caption": null, "width": 12}'}, ""),
        ({"photo.json": '{"tags": ["cat"]}', "photo.txt": "dog"}, "dog"),
        ({"other.txt": "dog"}, ""),
    ],
)
def test_tags_lie_beside_the_image(tmp_path: Path, files: dict[str, str], tags: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_tags(tmp_path / "photo.jpg") == tags


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("photo.txt", b"caf\xe9", "utf-8"),
        ("photo.json", b"{", "Expecting property name"),
        ("photo.json", b"", "Expecting value"),
        ("photo.json", b'["dog"]', "expected a JSON object, got list"),
        ("photo.json", b'{"tags": ["dog", 3]}', r"list of strings, got \['dog', 3\]"),
        ("photo.json", b'{"caption": {"en": "dog"}}', "list of strings, got {'en': 'dog'}"),
        ("photo.json", b"[" * 100_000, "recursion"),
    ],
)
def test_wrong_tags_are_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MegaSRError, match=f"(?s)cannot read the tags in .*{name}: .*{says}"):
        read_tags(tmp_path / "photo.jpg")


def test_a_source_reads_whole_images_with_their_tags(roots: tuple[str, str]) -> None:
    source = FolderSource(roots[0])
    (Path(roots[0]) / "deep" / "1.txt").write_text("dog\nball")
    samples = [source.read(index) for index in range(len(source))]
    assert [(sample.key, sample.tags, sample.hq.shape) for sample in samples] == [
        ("deep/0", "", (40, 48, 3)),
        ("deep/1", "dog, ball", (40, 48, 3)),
        ("deep/2", "", (40, 48, 3)),
    ]
    assert [int(sample.hq[0, 0, 2]) for sample in samples] == [0, 1, 2]


def test_a_source_goes_through_all_images_in_the_order_of_its_seed(roots: tuple[str, str]) -> None:
    source = FolderSource(roots[0])
    order = [source.order(draw, 0) for draw in range(60)]
    assert all(sorted(order[start : start + 3]) == [0, 1, 2] for start in range(0, 60, 3))
    assert len({tuple(order[start : start + 3]) for start in range(0, 60, 3)}) > 3
    assert order != [source.order(draw, 1) for draw in range(60)]


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    for name in ("damaged", "mute"):
        write(tmp_path / f"{name}.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "damaged.png").read_bytes()[:60])
    (tmp_path / "mute.json").write_text("{")
    source = FolderSource(tmp_path)
    for index, (key, reason, says) in enumerate(
        [
            ("damaged", "unreadable", r"damaged: unreadable \(cannot read image .*damaged\.png"),
            ("mute", "unreadable tags", r"mute\.json"),
        ]
    ):
        with pytest.raises(UnusableSampleError, match=says) as caught:
            source.read(index)
        assert (caught.value.key, caught.value.reason, caught.value.damaged) == (key, reason, True)
