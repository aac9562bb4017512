"""Photographs of every kind: what is read, and that a file of sr is of the same kind and says the same."""

import io

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from megasr.errors import MegaSRError
from megasr.images import decode_image
from megasr.inference.photographs import EXIF_IFD, GPS_IFD, encode, read_photograph
from megasr.rng import numpy_generator

H, W = 6, 9
RGB = numpy_generator(0, "photograph").integers(0, 256, (H, W, 3), np.uint8)
ALPHA = numpy_generator(0, "alpha").integers(0, 256, (H, W, 1), np.uint8)
DEEP = numpy_generator(0, "deep").integers(0, 65536, (H, W, 3), np.uint16)
DEEP_ALPHA = numpy_generator(0, "deep alpha").integers(0, 65536, (H, W, 1), np.uint16)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(orientation=1):
    data = Image.Exif()
    data.update({0x010F: "Maker", 0x0112: orientation, 0x8298: "(c) somebody", 0x0100: W})
    data.get_ifd(EXIF_IFD).update({0x829A: 0.01, 0x8827: 200, 0xA002: W, 0xA003: H})
    data.get_ifd(GPS_IFD).update({1: "N", 2: (60.0, 10.0, 0.5)})
    return data


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)


def deep_png(path, array):
    cv2.imwrite(str(path), array[..., [2, 1, 0, 3][: array.shape[2]]] if array.ndim == 3 else array)


def deep_tiff(path, array, **options):
    tifffile.imwrite(path, array, **options)


def half_clear_palette(path):
    image = Image.fromarray(np.arange(H * W, dtype=np.uint8).reshape(H, W), "L").convert("P")
    image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(path, transparency=3)


# name -> writer, pixels, alpha, is_grey
KINDS = {
    "a.png": (lambda p: saved(p, RGB), RGB, None, False),
    "alpha.png": (lambda p: saved(p, np.dstack([RGB, ALPHA])), RGB, ALPHA, False),
    "grey.png": (lambda p: saved(p, RGB[..., 0]), RGB[..., [0, 0, 0]], None, True),
    "grey_alpha.png": (lambda p: saved(p, np.dstack([RGB[..., 0], ALPHA])), RGB[..., [0, 0, 0]], ALPHA, True),
    "deep.png": (lambda p: deep_png(p, DEEP), DEEP, None, False),
    "deep_alpha.png": (lambda p: deep_png(p, np.dstack([DEEP, DEEP_ALPHA])), DEEP, DEEP_ALPHA, False),
    "deep_grey.png": (lambda p: deep_png(p, DEEP[..., 0]), DEEP[..., [0, 0, 0]], None, True),
    "bits.png": (lambda p: saved(p, RGB[..., 0] > 99), np.dstack([(RGB[..., 0] > 99) * np.uint8(255)] * 3), None, True),
    "palette.png": (half_clear_palette, None, None, False),
    "a.bmp": (lambda p: saved(p, RGB), RGB, None, False),
    "a.webp": (lambda p: saved(p, np.dstack([RGB, ALPHA]), lossless=True, exact=True), RGB, ALPHA, False),
    "a.tif": (lambda p: saved(p, RGB), RGB, None, False),
    "alpha.tiff": (lambda p: saved(p, np.dstack([RGB, ALPHA])), RGB, ALPHA, False),
    "deep.tif": (lambda p: deep_tiff(p, DEEP, photometric="rgb"), DEEP, None, False),
    "deep_alpha.tif": (
        lambda p: deep_tiff(p, np.dstack([DEEP, DEEP_ALPHA]), photometric="rgb", extrasamples=["unassalpha"]),
        DEEP,
        DEEP_ALPHA,
        False,
    ),
    "deep_grey.tif": (lambda p: deep_tiff(p, DEEP[..., 0], photometric="minisblack"), DEEP[..., [0, 0, 0]], None, True),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_and_written_again_as_the_same_kind(name, tmp_path):
    write, pixels, alpha, is_grey = KINDS[name]
    path = tmp_path / name
    write(path)
    photograph = read_photograph(path)
    assert photograph.is_grey is is_grey
    if pixels is not None:
        np.testing.assert_array_equal(photograph.pixels, pixels)
        assert photograph.is_deep is (pixels.dtype == np.uint16)
        assert (photograph.alpha is None) is (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(photograph.alpha, alpha[..., 0])

    path.write_bytes(encode(photograph.tensor(), photograph, path))
    again = read_photograph(path)
    if path.suffix != ".webp":  # lossy
        np.testing.assert_array_equal(again.pixels, photograph.pixels)
    np.testing.assert_array_equal(again.alpha, photograph.alpha)
    assert again.is_grey is is_grey
    decode_image(path.read_bytes(), name)  # what evaluation reads


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "deep.png", "deep.tif", "deep_alpha.tif"])
def test_metadata_are_kept_but_the_orientation(name, tmp_path):
    path = tmp_path / "in.jpg"
    saved(path, RGB, exif=exif(6), icc_profile=PROFILE, quality=100)
    photograph = read_photograph(path)
    if "deep" in name:
        deep = DEEP.swapaxes(0, 1)
        object.__setattr__(photograph, "pixels", deep)
        object.__setattr__(photograph, "alpha", deep[..., 0] if "alpha" in name else None)
    sr = torch.ones(3, 2 * W, 2 * H) / 3
    with Image.open(io.BytesIO(encode(sr, photograph, tmp_path / name))) as image:
        image.load()
        assert image.size == (2 * H, 2 * W)
        assert image.info["icc_profile"] == PROFILE
        said = image.getexif()
        assert said.get(0x0112, 1) == 1
        assert (said[0x010F].strip("\0"), said[0x8298].strip("\0")) == ("Maker", "(c) somebody")
        details, places = said.get_ifd(EXIF_IFD), said.get_ifd(GPS_IFD)
        assert (details[0x8827], float(details[0x829A]), details[0xA002], details[0xA003]) == (200, 0.01, 2 * H, 2 * W)
        assert (places[1].strip("\0"), [float(x) for x in places[2]]) == ("N", [60, 10, 0.5])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_every_orientation_is_turned_upright_as_the_viewers_do(turned, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    saved(path, RGB, exif=exif(turned))
    np.testing.assert_array_equal(read_photograph(path).pixels, decode_image(path.read_bytes(), "a"))


def test_alpha_is_enlarged_and_flattened_on_white_where_the_format_has_none(tmp_path):
    path = tmp_path / "a.png"
    saved(path, np.dstack([np.zeros((H, W, 3), np.uint8), np.repeat([[0, 0, 0, 0, 128, 255, 255, 255, 255]], H, 0)
                           .astype(np.uint8)]))  # fmt: skip
    photograph = read_photograph(path)
    sr = torch.zeros(3, 4 * H, 4 * W)
    with Image.open(io.BytesIO(encode(sr, photograph, path))) as image:
        alpha = np.asarray(image)[..., 3]
    assert alpha.shape == (4 * H, 4 * W)
    assert (alpha[:, :8] == 0).all() and (alpha[:, -8:] == 255).all()
    assert 100 < alpha[:, 18].mean() < 156
    for name in ("a.jpg", "a.bmp"):
        flat = decode_image(encode(sr, photograph, tmp_path / name), name)
        assert flat[:, :8].min() > 250 and flat[:, -8:].max() < 5


def test_cmyk_becomes_srgb(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=100, icc_profile=b"damaged")
    photograph = read_photograph(path)
    assert photograph.profile is None
    assert np.abs(photograph.pixels.astype(int) - [255, 0, 0]).max() < 8
    with Image.open(io.BytesIO(encode(photograph.tensor(), photograph, path))) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.png"
    saved(path, RGB)
    with pytest.raises(MegaSRError, match=r"a\.png: 9x6 px are more than 53 px"):
        read_photograph(path, max_pixels=53)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MegaSRError, match=r"cannot read image .*a\.png: "):
        read_photograph(path)
    path.write_bytes(b"")
    with pytest.raises(MegaSRError, match="the file is empty"):
        read_photograph(path)
    with pytest.raises(MegaSRError, match=r"absent\.png: No such file"):
        read_photograph(tmp_path / "absent.png")


def test_what_a_format_cannot_hold_is_an_error(tmp_path):
    path = tmp_path / "a.png"
    saved(path, RGB)
    with pytest.raises(MegaSRError, match=r"b\.webp: WEBP cannot hold 16390x2 px"):
        encode(torch.zeros(3, 2, 16390), read_photograph(path), tmp_path / "b.webp")
