"""Bytes to pixels: every kind of file that people have comes out right, and nothing that is not whole comes out."""

import io
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from megasr import image_decoding
from megasr.errors import MegaSRError
from megasr.image_decoding import MAX_PIXELS
from megasr.images import decode_image, read_size
from megasr.rng import numpy_generator

RGB = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3) * 4


def encode(image, kind, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "rgb", **options})
    return file.getvalue()


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def xmp(orientation):
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<rdf:Description tiff:Orientation="{orientation}"/>')
    return info


def text(characters):
    info = PngInfo()
    info.add_text("workflow", "x" * characters, zip=True)
    return info


def png(bit_depth, colour_type, row, **chunks):
    """A PNG of one row, of a kind that Pillow cannot write."""
    width = len(row) * 8 // bit_depth // {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    header = struct.pack(">IIBBBBB", width, 1, bit_depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"\0" + row)
    parts = [(b"IHDR", header), *((k.encode(), v) for k, v in chunks.items()), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in parts
    )


GREY = np.repeat(RGB[..., :1], 3, axis=2)
UPRIGHT = np.rot90(RGB, -1)  # orientation 6: to be turned clockwise for viewing
BITS = RGB[..., 0] > 100
DEEP = np.array([[[0, 255, 65535], [257, 128, 32896]], [[1, 2, 3], [60000, 300, 40000]]], np.uint16)
DEEP_ALPHA = np.dstack([DEEP, np.array([[65535, 0], [32768, 65535]], np.uint16)])
DEEP_8 = [[[0, 1, 255], [1, 0, 128]], [[0, 0, 0], [233, 1, 156]]]  # rounded; cut off it would be 0 0 255, 1 0 128...
DEEP_8_ON_WHITE = [[[0, 1, 255], [255, 255, 255]], [[128, 128, 128], [233, 1, 156]]]
RGBA = np.dstack([np.zeros((1, 3, 3), np.uint8), np.array([[0, 51, 255]], np.uint8)])
ON_WHITE = np.repeat(np.array([[255, 204, 0]], np.uint8)[..., None], 3, axis=2)
PALETTE = Image.fromarray(np.arange(3, dtype=np.uint8)[None], "L").convert("P")
PALETTE.putpalette([250, 1, 2, 3, 240, 5, 6, 7, 230])
COLOURS = np.array([[[250, 1, 2], [3, 240, 5], [6, 7, 230]]])
FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}

KINDS = {
    "png": (encode(RGB, "PNG"), RGB),
    "webp": (encode(RGB, "WEBP", lossless=True), RGB),
    "bmp": (encode(RGB, "BMP"), RGB),
    "tiff": (encode(RGB, "TIFF"), RGB),
    "tiff lzw": (encode(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "tiff planes": (tiff(np.moveaxis(RGB, 2, 0), planarconfig="separate"), RGB),
    "grey png": (encode(RGB[..., 0], "PNG"), GREY),
    "grey bmp": (encode(RGB[..., 0], "BMP"), GREY),
    "white is 0 tiff": (tiff(255 - RGB[..., 0], photometric="miniswhite"), GREY),
    "1-bit png": (encode(BITS, "PNG"), BITS[..., None].repeat(3, 2) * 255),
    "1-bit tiff": (encode(BITS, "TIFF", compression="group4"), BITS[..., None].repeat(3, 2) * 255),
    "palette png": (encode(PALETTE, "PNG"), COLOURS),
    "palette gif": (encode(PALETTE, "GIF"), COLOURS),
    "palette bmp": (encode(PALETTE, "BMP"), COLOURS),
    "transparent palette": (encode(PALETTE, "PNG", transparency=1), [[[250, 1, 2], [255, 255, 255], [6, 7, 230]]]),
    "half transparent palette": (
        encode(PALETTE, "PNG", transparency=bytes([255, 0, 51])),
        [[[250, 1, 2], [255, 255, 255], [205, 205, 250]]],
    ),
    "transparent colour": (
        png(8, 2, bytes([1, 2, 3, 4, 5, 6]), tRNS=struct.pack(">3H", 1, 2, 3)),
        [[[255] * 3, [4, 5, 6]]],
    ),
    "transparent grey": (png(8, 0, bytes([1, 2]), tRNS=struct.pack(">H", 1)), [[[255] * 3, [2] * 3]]),
    "alpha png": (encode(RGBA, "PNG"), ON_WHITE),
    "alpha webp": (encode(RGBA, "WEBP", lossless=True, exact=True), ON_WHITE),
    "alpha tiff": (encode(RGBA, "TIFF"), ON_WHITE),
    "premultiplied tiff": (tiff(RGBA, extrasamples=["assocalpha"]), ON_WHITE),
    "grey and alpha": (encode(RGBA[..., 2:], "PNG"), ON_WHITE),
    "16-bit grey png": (encode(DEEP[..., 1], "PNG"), np.array([[1, 0], [0, 1]])[..., None].repeat(3, 2)),
    "16-bit grey tiff": (encode(DEEP[..., 2], "TIFF"), np.array([[255, 128], [0, 156]])[..., None].repeat(3, 2)),
    "16-bit grey big-endian": (
        tiff(DEEP[..., 2], photometric="minisblack", byteorder=">"),
        np.array([[255, 128], [0, 156]])[..., None].repeat(3, 2),
    ),
    "16-bit transparent grey": (png(16, 0, b"\1\1\2\2", tRNS=b"\1\1"), [[[255] * 3, [2] * 3]]),
    "16-bit grey and alpha": (png(16, 4, struct.pack(">4H", 32896, 65535, 32896, 0)), [[[128] * 3, [255] * 3]]),
    "16-bit png": (cv2.imencode(".png", DEEP[..., ::-1])[1].tobytes(), DEEP_8),
    "16-bit tiff": (tiff(DEEP), DEEP_8),
    "16-bit tiff deflate big-endian": (tiff(DEEP, compression="zlib", byteorder=">"), DEEP_8),
    "16-bit tiff lzw": (cv2.imencode(".tiff", DEEP[..., ::-1])[1].tobytes(), DEEP_8),
    "16-bit alpha png": (cv2.imencode(".png", DEEP_ALPHA[..., [2, 1, 0, 3]])[1].tobytes(), DEEP_8_ON_WHITE),
    "16-bit alpha tiff": (tiff(DEEP_ALPHA, extrasamples=["unassalpha"]), DEEP_8_ON_WHITE),
    "16-bit transparent colour": (
        png(16, 2, struct.pack(">6H", 257, 300, 60000, 514, 0, 0), tRNS=struct.pack(">3H", 257, 300, 60000)),
        [[[255] * 3, [2, 0, 0]]],
    ),
    "float tiff": (tiff(RGB[..., 0].astype(np.float32) / 255, photometric="minisblack"), GREY),
    "rotated png": (encode(RGB, "PNG", exif=rotated(6)), UPRIGHT),
    "rotated webp": (encode(RGB, "WEBP", lossless=True, exif=rotated(6)), UPRIGHT),
    "rotated tiff": (tiff(RGB, extratags=[(274, "H", 1, 6, True)]), UPRIGHT),
    "rotated 16-bit tiff": (tiff(DEEP, extratags=[(274, "H", 1, 6, True)]), np.rot90(DEEP_8, -1)),
    "rotated alpha": (encode(RGBA, "PNG", exif=rotated(6)), np.rot90(ON_WHITE, -1)),
    "animated gif": (encode(PALETTE, "GIF", save_all=True, append_images=[PALETTE.convert("L")]), COLOURS),
    "animated webp": (encode(RGB, "WEBP", lossless=True, **FRAMES), RGB),
    "animated png": (encode(RGB, "PNG", **FRAMES), RGB),
    "tiff of two pages": (encode(RGB, "TIFF", **FRAMES), RGB),
    "damaged EXIF": (encode(RGB, "PNG", exif=b"Exif\0\0MM\0*\0\0"), RGB),
    "long text": (encode(RGB, "PNG", pnginfo=text(3 << 20)), RGB),
    "XMP asks for rotation": (encode(RGB, "PNG", pnginfo=xmp(6)), UPRIGHT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_has_its_right_pixels(kind, tmp_path):
    content, pixels = KINDS[kind]
    decoded = decode_image(content, kind)
    assert decoded.dtype == np.uint8 and decoded.flags.writeable
    assert decoded.tolist() == np.asarray(pixels).tolist()
    (tmp_path / "image").write_bytes(content)
    assert read_size(tmp_path / "image") == decoded.shape[:2]


NOISE = numpy_generator(0, "noise").integers(0, 256, (67, 101, 3), dtype=np.uint8)
PHOTO = cv2.resize(NOISE[:9, :13], (101, 67), interpolation=cv2.INTER_CUBIC)
PLAIN = {
    "photo": encode(PHOTO, "JPEG"),
    "noise": encode(NOISE, "JPEG", quality=30),
    "not subsampled": encode(PHOTO, "JPEG", subsampling=0),
    "half subsampled": encode(PHOTO, "JPEG", subsampling=1, quality=95),
    "progressive": encode(PHOTO, "JPEG", progressive=True),
    "restart markers": encode(PHOTO, "JPEG", restart_marker_blocks=2),
    "grey": encode(PHOTO[..., 0], "JPEG"),
    "RGB inside": encode(Image.fromarray(PHOTO), "JPEG", keep_rgb=True),
    "one pixel": encode(PHOTO[:1, :1], "JPEG"),
    "upright": encode(PHOTO, "JPEG", exif=rotated(1), comment="hello", dpi=(72, 72)),
    "bytes after the end": encode(PHOTO, "JPEG") + bytes(1000),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_jpegs_have_pillows_pixels_bit_for_bit(kind, monkeypatch):
    """They are decoded by OpenCV. That it does not depend on the decoder is what makes the choice invisible."""
    content, decoded = PLAIN[kind], []
    decode = image_decoding._decode_plain_jpeg
    monkeypatch.setattr(image_decoding, "_decode_plain_jpeg", lambda *a: decoded.append(a) or decode(*a))
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(decode_image(content, kind), expected)
    assert decode_image(content, kind).flags.writeable
    assert len(decoded) == 2


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_rotated_jpeg_is_turned_upright_once(orientation, tmp_path):
    turned = decode_image(content := encode(PHOTO, "JPEG", exif=rotated(orientation)), "photo")
    stored = decode_image(PLAIN["photo"], "photo")
    # EXIF 2.32, tag 0x0112: which side of the stored picture is shown at the top and at the left.
    shown = {2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1)}
    shown |= {6: np.rot90(stored, -1), 7: stored[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(stored)}
    assert np.array_equal(turned, shown[orientation])
    (tmp_path / "image").write_bytes(content)
    assert read_size(tmp_path / "image") == turned.shape[:2]


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"Exif\0\0" + bytes(range(200))])
def test_damaged_exif_does_not_cost_the_picture(exif):
    assert np.array_equal(
        decode_image(encode(PHOTO, "JPEG", exif=exif), "photo"), decode_image(PLAIN["photo"], "photo")
    )


def test_cmyk_jpegs_are_inverted_as_adobe_has_them(monkeypatch):
    monkeypatch.setattr(image_decoding, "_decode_plain_jpeg", None)  # OpenCV's conversion differs from Pillow's
    content = encode(Image.new("CMYK", (16, 16), (0, 255, 0, 51)), "JPEG", quality=100)
    assert b"Adobe" in content
    assert np.abs(decode_image(content, "cmyk").astype(int) - [204, 0, 204]).max() <= 2


REFUSED = {
    "nothing": (b"", "the file is empty"),
    "text": (b"<html>404 not found</html>", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "only a signature": (b"\x89PNG\r\n\x1a\n", "not an image"),
    "16-bit planes": (tiff(np.moveaxis(DEEP, 2, 0), planarconfig="separate"), "unusual layout"),
    "16-bit premultiplied": (tiff(DEEP_ALPHA, extrasamples=["assocalpha"]), "unusual layout"),
    "16-bit white is 0": (tiff(DEEP[..., 0], photometric="miniswhite"), "unusual layout"),
    "float of unknown range": (tiff(RGB[..., 0].astype(np.float32), photometric="minisblack"), "what is white"),
    "not a number": (tiff(np.full((2, 2), np.nan, np.float32), photometric="minisblack"), "what is white"),
    "32-bit": (tiff(RGB[..., 0].astype(np.int32), photometric="minisblack"), "unusual layout"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_refused_by_name(kind):
    content, says = REFUSED[kind]
    with pytest.raises(MegaSRError, match=f"cannot read image 0042.jpg: .*{says}"):
        decode_image(content, "0042.jpg")


WHOLE = {
    "baseline": encode(NOISE, "JPEG"),
    "progressive": encode(NOISE, "JPEG", progressive=True),
    "with thumbnail": encode(NOISE, "JPEG", exif=b"Exif\0\0" + encode(PHOTO, "JPEG")),
    "cmyk": encode(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
    "rotated": encode(NOISE, "JPEG", exif=rotated(6)),
    "png": encode(NOISE, "PNG"),
    "16-bit": cv2.imencode(".png", NOISE.astype(np.uint16) * 257)[1].tobytes(),
    "webp": encode(NOISE, "WEBP"),
    "bmp": encode(NOISE, "BMP"),
    "gif": encode(NOISE, "GIF"),
    "tiff": encode(NOISE, "TIFF"),
    "tiff lzw": encode(NOISE, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("padded", [False, True], ids=["cut", "cut and padded with zeros"])
def test_a_file_that_lost_its_tail_is_an_error_not_half_a_picture(kind, padded, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as pyiqa leaves it
    content = WHOLE[kind]
    whole = decode_image(content, kind)
    for share in (0.1, 0.5, 0.9, 0.97):
        kept = content[: int(len(content) * share)]
        if padded and kind in ("webp", "bmp", "tiff", "gif", "tiff lzw"):
            continue  # zeros are pixels to these formats
        with pytest.raises(MegaSRError):
            decode_image(kept + bytes(len(content) - len(kept)) if padded else kept, kind)
    assert np.array_equal(decode_image(content, kind), whole)


def test_a_bomb_of_text_is_refused():
    with pytest.raises(MegaSRError, match=r"text\.png: Decompressed data too large"):
        decode_image(encode(RGB, "PNG", pnginfo=text((64 << 20) + 1)), "text.png")


def bombs():
    side = 2**14 - 1
    header = png(8, 2, b"")[:16] + struct.pack(">II", side, side) + png(8, 2, b"")[24:29]
    yield "png", header + struct.pack(">I", zlib.crc32(header[12:])) + png(8, 2, b"")[33:]
    at = (jpeg := PLAIN["photo"]).index(b"\xff\xc0") + 5
    yield "jpeg", jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :]
    at = (progressive := PLAIN["progressive"]).index(b"\xff\xc2") + 5
    yield "progressive", progressive[:at] + struct.pack(">HH", side, side) + progressive[at + 4 :]
    bmp = encode(RGB, "BMP")
    yield "bmp", bmp[:18] + struct.pack("<II", side, side) + bmp[26:]
    gif = encode(PALETTE, "GIF")
    yield "gif", gif[:6] + struct.pack("<HH", side, side) + gif[10:]


@pytest.mark.parametrize(("kind", "content"), bombs())
def test_a_bomb_is_refused_from_its_header(kind, content):
    assert MAX_PIXELS < (2**14 - 1) ** 2
    with pytest.raises(MegaSRError, match=r"16383x16383 px are more|decompression bomb"):
        decode_image(content, kind)


@pytest.mark.parametrize("content", [PLAIN["photo"], encode(PHOTO, "PNG")], ids=["jpeg", "png"])
def test_the_largest_size_can_be_chosen(content):
    assert decode_image(content, "photo", max_pixels=101 * 67).shape == (67, 101, 3)
    with pytest.raises(MegaSRError, match="photo: 101x67 px are more than 6766 px"):
        decode_image(content, "photo", max_pixels=101 * 67 - 1)


def test_a_jpeg_of_endless_scans_is_refused():
    progressive = PLAIN["progressive"]
    first, end = progressive.index(b"\xff\xda"), progressive.rindex(b"\xff\xd9")
    scan = progressive[first : progressive.index(b"\xff\xc4", first)]
    with pytest.raises(MegaSRError, match="more than 200 scans"):
        decode_image(progressive[:end] + scan * 300 + progressive[end:], "slow")


@pytest.mark.parametrize("bits", [8, 16])
def test_data_behind_the_last_row_of_a_png_is_not_unpacked(bits):
    """A megabyte of a 16-bit PNG of one pixel of zeros unpacked to a gigabyte, for ten seconds."""
    rows = bytes(1 + 3 * bits // 8)
    content, bomb = png(bits, 2, rows[1:]), zlib.compress(rows + bytes(2**28), 1)
    at = content.index(b"IDAT") - 4
    packed = struct.pack(">I", len(bomb)) + b"IDAT" + bomb + struct.pack(">I", zlib.crc32(b"IDAT" + bomb))
    content = content[:at] + packed + content[content.index(b"IEND") - 4 :]
    began = time.perf_counter()
    if bits == 8:  # Pillow stops behind the last row
        assert decode_image(content, "padded").tolist() == [[[0, 0, 0]]]
    else:
        with pytest.raises(MegaSRError, match="more data than a PNG of 1x1 px has"):
            decode_image(content, "padded")
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("compressed", [b"zTXta\0\0", b"iTXta\0\1\0\0\0", b"iCCPa\0\0"])
@pytest.mark.parametrize("bits", [8, 16])
def test_texts_and_profiles_of_a_png_are_no_bombs(compressed, bits):
    content = compressed + zlib.compress(bytes(2**28), 1)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    plain = png(bits, 2, bytes(3 * bits // 8))
    began = time.perf_counter()
    with pytest.raises(MegaSRError, match="MAX_TEXT_CHUNK"):
        decode_image(plain[:33] + chunk + plain[33:], "texts")
    assert time.perf_counter() - began < 1


def test_a_16_bit_png_of_several_pieces_is_read():
    deep = numpy_generator(0, "deep").integers(0, 65536, (37, 53, 4), dtype=np.uint16)
    content = cv2.imencode(".png", deep)[1].tobytes()
    at = content.index(b"IDAT") - 4
    size = int.from_bytes(content[at : at + 4])
    data = content[at + 8 : at + 8 + size]
    pieces = b"".join(
        struct.pack(">I", len(part)) + b"IDAT" + part + struct.pack(">I", zlib.crc32(b"IDAT" + part))
        for part in (data[:100], b"", data[100:])
    )
    split = content[:at] + pieces + content[at + 12 + size :]
    assert np.array_equal(decode_image(split, "split"), decode_image(content, "whole"))


def test_alpha_of_16_bits_is_put_on_white():
    deep = numpy_generator(0, "deep").integers(0, 65536, (600, 5, 4), dtype=np.uint16)
    alpha = deep[..., 3:].astype(np.float32) / 65535
    expected = ((deep[..., :3] * alpha + 65535 * (1 - alpha)).round() / 257).round()
    content = cv2.imencode(".png", deep[..., [2, 1, 0, 3]])[1].tobytes()
    assert np.array_equal(decode_image(content, "alpha"), expected)


def test_every_16_bit_value_is_rounded_to_the_nearest():
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = (deep / 257).round().astype(np.uint8)
    assert np.array_equal(decode_image(encode(deep, "PNG"), "grey")[..., 1], expected)
    assert np.array_equal(decode_image(tiff(deep[..., None].repeat(3, 2)), "colours")[..., 1], expected)
