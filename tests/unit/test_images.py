"""Pixels in and out: every kind of file that people have, and the conversions that numbers rest on."""

import errno
import os

import numpy as np
import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.image_decoding import list_images
from megasr.images import (
    center_crop,
    from_uint8,
    pad_to_multiple,
    quantise,
    read_image,
    read_size,
    resize,
    to_uint8,
    upsample_lq,
    write_png,
)

RGB = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3) * 4


def test_uint8_round_trip_and_rounding():
    tensor = from_uint8(RGB)
    assert tensor.shape == (3, 4, 5) and tensor.dtype == torch.float32
    assert np.array_equal(to_uint8(tensor), RGB)
    assert to_uint8(torch.tensor([0.5, -1.0, 2.0]).view(3, 1, 1)).ravel().tolist() == [128, 0, 255]
    assert torch.equal(quantise(tensor + 0.001), tensor)


def test_resize_keeps_constants_and_range():
    step = torch.zeros(1, 3, 16, 16)
    step[..., 8:] = 1
    small = resize(step, 4, 4)
    assert small.shape == (1, 3, 4, 4) and small.min() >= 0 and small.max() <= 1
    assert torch.allclose(resize(torch.full((1, 3, 8, 8), 0.3), 3, 5), torch.tensor(0.3))
    assert upsample_lq(small, 4).shape == step.shape


def test_padding_replicates_the_border():
    image = torch.rand(1, 3, 5, 8)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 3, 8, 8)
    assert torch.equal(padded[..., :5, :], image) and torch.equal(padded[..., 7, :], image[..., 4, :])
    assert pad_to_multiple(padded, 4) is padded


def test_center_crop():
    assert np.array_equal(center_crop(RGB, 2), RGB[1:3, 1:3])


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"no image")
    with pytest.raises(MegaSRError, match=r"cannot read image .*photo\.png: not an image"):
        read_image(tmp_path / "photo.png")
    for path in (tmp_path / "absent.png", tmp_path):
        for read in (read_image, read_size):
            with pytest.raises(MegaSRError, match=f"cannot read image {path}: "):
                read(path)


def test_an_image_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MegaSRError, match="cannot write"):
        write_png(RGB, tmp_path / "file" / "out.png")
    (tmp_path / "out.png").mkdir()  # the name is taken by a folder: renaming onto it fails after the bytes are written
    with pytest.raises(MegaSRError, match=r"cannot write .*out\.png"):
        write_png(RGB, tmp_path / "out.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out.png"]
    write_png(RGB, tmp_path / "new" / "out.png")
    assert np.array_equal(read_image(tmp_path / "new" / "out.png"), RGB)
    assert (tmp_path / "new" / "out.png").stat().st_mode & 0o777 == (tmp_path / "file").stat().st_mode & 0o777


def test_a_folder_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path, monkeypatch):
    """A recipe's folders are relative to where a command is typed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^data/train: no such folder in {tmp_path}$"):
        list_images("data/train")
    with pytest.raises(UsageError, match=f"^{tmp_path}/train: no such folder$"):
        list_images(tmp_path / "train")


def test_what_is_hidden_is_no_image_and_links_are_followed(tmp_path):
    for name in ("set/a.png", "set/._a.png", "set/.ipynb_checkpoints/a-checkpoint.png", "elsewhere/deep/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "gone.png").symlink_to(tmp_path / "not mounted.png")
    listed = list_images(tmp_path / "set")
    assert [p.relative_to(tmp_path / "set").as_posix() for p in listed] == ["a.png", "gone.png", "link/deep/b.png"]
    with pytest.raises(MegaSRError, match=r"cannot read image .*gone\.png: No such file"):
        read_image(listed[1])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(MegaSRError, match=f"cannot read {tmp_path}: Permission denied"):
        list_images(tmp_path)


@pytest.mark.filterwarnings("error")
def test_an_image_of_one_pixel_that_cannot_be_written_to_is_no_reason_to_warn():
    pixel = np.zeros((1, 1, 3), np.uint8)
    pixel.flags.writeable = False
    assert from_uint8(pixel).shape == (3, 1, 1)


def test_folders_are_listed_recursively_and_sorted(tmp_path):
    for name in ("b/2.png", "a.jpg", "b/1.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["a.jpg", "b/1.webp", "b/2.png"]
    (tmp_path / "empty").mkdir()
    for folder, says in ((tmp_path / "empty", "holds no image"), (tmp_path / "absent", "no such folder")):
        with pytest.raises(UsageError, match=says):
            list_images(folder)
