from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megasr.errors import MegaSRError
from megasr.guidance.extractors import Views
from megasr.guidance.regions import DepthNetwork, load_depth, normalise_depth, normals_from_depth
from tests.helpers.extractor_checkpoints import random_pictures, write_depth

BOTH = ("depth", "normal")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_depth(tmp_path_factory.mktemp("depth"))


@pytest.fixture
def network(checkpoint: Path) -> DepthNetwork:
    return load_depth(str(checkpoint))


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_equals_the_library_s_own_forward_pass(network: DepthNetwork) -> None:
    image = random_pictures()  # 75 x 101: the shorter side to 56, the longer to 70 (5 patches of 14)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    resized = F.interpolate(image, (56, 70), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    with torch.no_grad():
        expected = network.model((resized - mean.view(3, 1, 1)) / std.view(3, 1, 1)).predicted_depth
    raw = network.decode(network.encode(Views(image)), ("depth",))["depth"]
    assert raw.shape == (2, 1, 56, 70)
    torch.testing.assert_close(raw[:, 0], expected, atol=1e-3, rtol=1e-4)
    assert expected.std() > 1


def test_the_map_is_the_normalised_prediction_and_normals_are_of_the_map(network: DepthNetwork) -> None:
    image = random_pictures()
    raw = network.decode(network.encode(Views(image)), ("depth",))["depth"]
    found = network(Views(image), BOTH)
    large = F.interpolate(raw, (75, 101), mode="bilinear", align_corners=False)
    for one, depth in zip(large, found["depth"], strict=True):
        torch.testing.assert_close(depth, (one - one.min()) / (one.max() - one.min()))
    assert torch.equal(found["normal"], normals_from_depth(found["depth"]))


@pytest.mark.parametrize(
    ("size", "grid"), [((75, 101), (4, 5)), ((101, 75), (5, 4)), ((14, 14), (4, 4)), ((300, 20), (60, 4))]
)
def test_shapes_and_ranges(network: DepthNetwork, size: tuple[int, int], grid: tuple[int, int]) -> None:
    views = Views(random_pictures(2, *size))
    assert [x.shape for x in network.encode(views)] == [(2, 48, *grid)] * 4
    found = network(views, BOTH)
    assert found["depth"].shape == (2, 1, *size) and found["normal"].shape == (2, 3, *size)
    for image in found.values():
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1


def test_the_head_computes_in_float32_under_autocast(network: DepthNetwork) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = network.decode(network.encode(Views(random_pictures(1))), ("depth",))["depth"]
    assert raw.dtype == torch.float32 and not torch.equal(raw, raw.bfloat16().float())


def test_normalised_per_image_with_near_bright() -> None:
    disparity = torch.stack([torch.linspace(2, 6, 12).view(1, 3, 4), torch.linspace(-1, 0, 12).view(1, 3, 4)])
    found = normalise_depth(disparity)
    torch.testing.assert_close(found[0], torch.linspace(0, 1, 12).view(1, 3, 4))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("value", [0.0, 7.0, -1e-30, 1e30])
def test_a_constant_map_gives_zeros(value: float) -> None:
    assert torch.equal(normalise_depth(torch.full((1, 1, 3, 3), value)), torch.zeros(1, 1, 3, 3))


def test_rounding_errors_are_not_depth() -> None:
    noise = 100 + 1e-5 * torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    assert normalise_depth(noise).max() < 0.05


def test_size_and_normalisation_come_with_the_network(copied: Path) -> None:
    edit(copied / "preprocessor_config.json", size=28, image_mean=[0.1, 0.2, 0.3], image_std=[1, 1, 1])
    network = load_depth(str(copied))
    image = torch.full((1, 3, 28, 28), 0.5)
    prepared = network.preprocessing.prepare(Views(image), 14)
    torch.testing.assert_close(prepared[0, :, 0, 0], torch.tensor([0.4, 0.3, 0.2]))
    assert network.encode(Views(image))[0].shape[-2:] == (2, 2)
    (copied / "preprocessor_config.json").unlink()
    assert load_depth(str(copied)).preprocessing.shorter_px == 518


def test_metric_depth_is_refused(tmp_path: Path) -> None:
    folder = write_depth(tmp_path, kind="metric")
    with pytest.raises(MegaSRError, match="predicts metric depth; needed: a relative one"):
        load_depth(str(folder))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(MegaSRError, match=message) as caught:
        load_depth(str(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_missing_and_mismatched_weights_are_refused(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copied / "model.safetensors"
    state = load_file(path)
    save_file({k: v for k, v in state.items() if not k.startswith("head.conv2")}, path, {"format": "pt"})
    refused(copied, r"lacks weights.*: head.conv2.bias, head.conv2.weight$")
    save_file(state | {"head.conv2.bias": torch.zeros(3)}, path, {"format": "pt"})
    refused(copied, r"lacks weights, or has others of their shape: head.conv2.bias$")
    save_file({k: v for k, v in state.items() if not k.endswith("mask_token")}, path, {"format": "pt"})
    load_depth(str(copied))  # nothing uses it


def test_broken_folders(copied: Path) -> None:
    weights, config = copied / "model.safetensors", copied / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(copied, "cannot be read")
    weights.unlink()
    refused(copied, "cannot be read")
    weights.write_bytes(whole)
    edit(copied / "preprocessor_config.json", image_std=[0, 0, 0])
    refused(copied, "preprocessor_config.json cannot be used: size 56")
    (copied / "preprocessor_config.json").write_text("{")
    refused(copied, "preprocessor_config.json cannot be used")
    edit(config, architectures=["DPTForDepthEstimation"])
    refused(copied, "is a DPTForDepthEstimation; needed: DepthAnythingForDepthEstimation")
    config.write_text("[]")
    refused(copied, "is no transformers folder: .*holds no object")
    config.unlink()
    refused(copied, "is no transformers folder: .*config.json")
    with pytest.raises(MegaSRError, match="nowhere"):
        load_depth(str(copied / "nowhere"))
