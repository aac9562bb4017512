from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megasr.errors import MegaSRError
from megasr.guidance.extractors import Views
from megasr.guidance.mlsd import MlsdNetwork, find_segments, load_mlsd
from megasr.images import from_uint8, read_image
from tests.helpers.extractor_checkpoints import mlsd_convolutions, random_pictures, write_mlsd
from tests.helpers.shared import shared

# By onnxruntime on mlsd_512x512_tiny.onnx for the colours of DSC_1404_x1.png (0...255) beside a channel of ones, its
# outputs `scores` and `offsets`: (row, column) -> score, ends from there as x, y, x, y.
REFERENCE = {
    (23, 144): (0.9561, [-0.63, -23.48, 1.09, 24.18]),
    (22, 119): (0.9466, [0.03, -22.26, 1.84, 23.68]),
    (88, 220): (0.8903, [-0.99, -26.06, 1.79, 27.20]),
    (158, 122): (0.5230, [-2.34, 0.49, 2.62, 0.22]),
    (116, 187): (0.1894, [-4.52, 0.13, 5.11, 0.23]),
}
PEAKS = 260  # places with a score above 0.1
MEAN_OFFSET = 17.974  # of the absolute values of `offsets`


@pytest.fixture(scope="module")
def public() -> MlsdNetwork:
    return load_mlsd(str(shared("weights", "mlsd")))


def raw_of(network: MlsdNetwork, image: torch.Tensor) -> torch.Tensor:
    return network.decode(network.encode(Views(image)), ("mlsd",))["mlsd"]


def test_public_weights_give_what_onnxruntime_computes(public: MlsdNetwork) -> None:
    photograph = from_uint8(read_image(shared("data", "drealsr", "hq", "DSC_1404_x1.png")))[None]
    raw = raw_of(public, photograph)[0]
    assert raw.shape == (5, 256, 256)
    for (row, column), (score, ends) in REFERENCE.items():
        assert raw[0, row, column].sigmoid().item() == pytest.approx(score, abs=5e-4)
        torch.testing.assert_close(raw[1:, row, column], torch.tensor(ends), atol=0.01, rtol=0)
    assert raw[1:].abs().mean().item() == pytest.approx(MEAN_OFFSET, abs=1e-3)
    scores = raw[0].sigmoid()
    peaks = scores * (F.max_pool2d(scores[None], 3, stride=1, padding=1)[0] == scores)
    assert (peaks > 0.1).sum() == PEAKS
    segments = find_segments(raw, (512, 512))
    assert len(segments) == 200, "the most that ControlNet's annotator draws"
    first, (_, ends) = next(iter(REFERENCE.items()))
    expected = [2 * (place + end) for place, end in zip((first[1], first[0]) * 2, ends, strict=True)]
    torch.testing.assert_close(segments[0], torch.tensor(expected), atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [(512, 512), (128, 192)])
def test_public_weights_draw_the_outline_of_a_rectangle(public: MlsdNetwork, size: tuple[int, int]) -> None:
    """In its place at any size of the image; a plain image has no lines."""
    height, width = size
    top, bottom, left, right = (
        round(share * side) for share, side in zip((0.3, 0.7, 0.25, 0.6), (height, height, width, width), strict=True)
    )
    image = torch.full((1, 3, *size), 0.2)
    assert public(Views(image), ("mlsd",))["mlsd"].sum() == 0
    image[..., top:bottom, left:right] = 0.8
    lines = public(Views(image), ("mlsd",))["mlsd"][0, 0]
    assert lines.shape == size
    assert 0.5 < lines.max() <= 1
    inner = slice(top + 10, bottom - 10), slice(left + 10, right - 10)
    for near, across in (
        (lines[top - 2 : top + 2, inner[1]], 0),
        (lines[bottom - 2 : bottom + 2, inner[1]], 0),
        (lines[inner[0], left - 2 : left + 2], 1),
        (lines[inner[0], right - 2 : right + 2], 1),
    ):
        assert (near.amax(across) > 0.3).float().mean() > 0.9


def plain_mlsd(image: torch.Tensor) -> torch.Tensor:
    """The public graph's nodes for colours in [-1, 1], one after another: its 16 outputs at half the resolution."""
    convolutions = iter(mlsd_convolutions())

    def conv(x: torch.Tensor, **more: int) -> torch.Tensor:
        weight, bias = next(convolutions)
        if more.pop("halves", 0):
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2, groups=x.shape[1] // weight.shape[1])
        dilation = more.get("dilation", 1)
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, bias, 1, padding, dilation, x.shape[1] // weight.shape[1])

    def block(x: torch.Tensor, halves: int = 0) -> torch.Tensor:
        y = conv(F.relu6(conv(F.relu6(conv(x)), halves=halves)))
        return y if y.shape != x.shape else x + y

    def twice(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    x = torch.cat([image, torch.full_like(image[:, :1], 1 / 127.5 - 1)], 1)
    x = conv(F.relu6(conv(F.relu6(conv(x, halves=1)))))
    fine = block(block(x, halves=1))
    fine_side = F.relu(conv(fine))
    middle = block(block(block(fine, halves=1)))
    coarse = block(block(block(block(middle, halves=1))))
    coarse_side = F.relu(conv(twice(coarse)))
    x = torch.cat([F.relu(conv(middle)), coarse_side], 1)
    x = twice(F.relu(conv(x + F.relu(conv(x)))))
    x = torch.cat([fine_side, F.relu(conv(x))], 1)
    x = F.relu(conv(x + F.relu(conv(x))))
    x = twice(conv(F.relu(conv(F.relu(conv(x, dilation=5))))))
    assert next(convolutions, None) is None
    return x


def test_equals_the_public_graph(tmp_path: Path) -> None:
    network, image = load_mlsd(str(write_mlsd(tmp_path))), random_pictures(1, 64, 64)
    expected = plain_mlsd(image * 2 - 1)[:, 7:12]
    assert expected.std() > 0.5
    torch.testing.assert_close(raw_of(network, image), expected, atol=1e-3, rtol=1e-4)


def test_segments_are_peaks_of_enough_probability_and_length() -> None:
    raw = torch.zeros(5, 8, 10)
    raw[0] = -9
    raw[0, 2, 3], raw[1:, 2, 3] = 3, torch.tensor([-2.0, 0, 2, 1])
    raw[0, 2, 4], raw[1:, 2, 4] = 2, torch.tensor([-2.0, 0, 2, 0])  # beside a higher one
    raw[0, 6, 6], raw[1:, 6, 6] = 1, torch.tensor([0.0, 0, 0, 0.09])  # too short
    raw[0, 5, 1], raw[1:, 5, 1] = -2.3, torch.tensor([-2.0, 0, 2, 0])  # a probability of 0.09
    raw[0, 1, 8], raw[1:, 1, 8] = -2.1, torch.tensor([0.0, -1, 1, 2])  # of 0.11
    found = find_segments(raw, (32, 30))
    torch.testing.assert_close(found, torch.tensor([[3.0, 8, 15, 12], [24, 0, 27, 12]]))


def test_an_export_is_read_as_the_public_file_is(tmp_path: Path) -> None:
    network = load_mlsd(str(write_mlsd(tmp_path).parent))
    network.export(tmp_path / "tuned")
    again = load_mlsd(str(tmp_path / "tuned"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    assert sum(value.numel() for value in network.parameters()) == 614_224  # of mlsd_512x512_tiny.onnx


def test_what_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    content = write_mlsd(tmp_path).read_bytes()
    path = tmp_path / "x.onnx"
    for wrong, message in (
        (content[:-100], "it is truncated"),
        (b"<html>moved</html>", "it is (no ONNX file|truncated)"),
        (b"", "it is no ONNX file"),
        (content.replace(b"filter20", b"filter_0", 1), "convolution 20 has no weight and bias"),
        (write_mlsd(tmp_path, input_px=0).read_bytes(), r"its input is \[1, 0, 0, 4\]"),
        (content.replace(b"Conv", b"Gemm", 1), "it has 40 convolutions, M-LSD tiny has 41"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(MegaSRError, match=rf"M-LSD .*x.onnx cannot be (read|used): {message}"):
            load_mlsd(str(path))
