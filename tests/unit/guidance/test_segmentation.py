from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megasr.errors import MegaSRError, UsageError
from megasr.guidance.extractors import Views
from megasr.guidance.regions import SegmentationNetwork, ade20k_classes, load_segmentation
from tests.helpers.extractor_checkpoints import SEGMENTATION_KINDS, random_pictures, write_segmentation

NAMES = [name for name, _ in ade20k_classes()]
SEG = ("segmentation",)


@pytest.fixture(scope="module", params=SEGMENTATION_KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmentation(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def network(checkpoint: Path) -> SegmentationNetwork:
    return load_segmentation(str(checkpoint))


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmentation(tmp_path_factory.mktemp("plain"), "segformer")


@pytest.fixture
def renamed(segformer: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint whose config names other classes."""

    def write(names: Any) -> Path:
        folder = Path(shutil.copytree(segformer, tmp_path / "copy", dirs_exist_ok=True))
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = {str(i): name for i, name in enumerate(names)} if isinstance(names, list) else names
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


def test_the_table_is_the_public_one() -> None:
    classes = dict(ade20k_classes())
    assert len(ade20k_classes()) == len(classes) == 150
    assert [rgb for _, rgb in ade20k_classes()[:6]] == [
        (120, 120, 120), (180, 120, 120), (6, 230, 230), (80, 50, 50), (4, 200, 3), (120, 120, 80),
    ]  # fmt: skip
    assert (NAMES[0], NAMES[12], NAMES[75], NAMES[149]) == ("wall", "person", "swivel chair", "flag")
    assert classes["person"] == (150, 5, 61) and classes["flag"] == (92, 0, 255)
    assert classes["chest of drawers"] == (6, 51, 255) and classes["light"] == (255, 173, 0)
    # Two classes share a colour in every public copy of the table.
    assert classes["road"] == classes["skyscraper"] and len(set(classes.values())) == 149


def library_scores(network: SegmentationNetwork, image: torch.Tensor) -> torch.Tensor:
    """Class scores of the library's own forward pass, at whatever size it gives them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    size = (64, 96)  # of 75 x 101: the shorter side is 64, both are multiples of 32
    resized = F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    with torch.no_grad():
        found = network.model(pixel_values=(resized - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    if not hasattr(found, "class_queries_logits"):
        return found.logits
    classes = found.class_queries_logits.softmax(-1)[..., :150]
    return sum(
        classes[:, query, :, None, None] * found.masks_queries_logits[:, query, None].sigmoid()
        for query in range(classes.shape[1])
    )


def test_equals_the_library_s_own_forward_pass(network: SegmentationNetwork) -> None:
    image = random_pictures()
    logits = network.decode(network.encode(Views(image)), SEG)["segmentation"]
    expected = library_scores(network, image)
    if type(network.model).__name__.startswith("UperNet"):  # which gives logits at the size of its input
        logits = F.interpolate(logits, (64, 96), mode="bilinear", align_corners=False)
    if type(network.model).__name__.startswith("Mask2Former"):
        logits = logits.exp()
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert logits.argmax(1).unique().numel() > 3


def test_the_map_is_the_colour_of_the_likeliest_class(network: SegmentationNetwork) -> None:
    logits = torch.full((2, 150, 3, 4), -1.0)
    logits[0, 2], logits[1, 12] = 5.0, 5.0
    logits[1, 149, :, 2:] = 9.0
    found = network.finish({"segmentation": logits}, SEG, (6, 8))["segmentation"]
    sky, person, flag = (torch.tensor(rgb).view(3, 1, 1) / 255 for rgb in ((6, 230, 230), (150, 5, 61), (92, 0, 255)))
    torch.testing.assert_close(found[0], sky.expand(3, 6, 8))
    torch.testing.assert_close(found[1, :, :, :3], person.expand(3, 6, 3))
    torch.testing.assert_close(found[1, :, :, 5:], flag.expand(3, 6, 3))


@pytest.mark.parametrize("size", [(75, 101), (101, 75), (16, 60)])
def test_shapes_and_ranges(network: SegmentationNetwork, size: tuple[int, int]) -> None:
    found = network(Views(random_pictures(2, *size)), SEG)["segmentation"]
    assert found.shape == (2, 3, *size) and found.dtype == torch.float32
    palette = {tuple(rgb) for _, rgb in ade20k_classes()}
    colours = (found * 255).round().int().permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0).tolist()
    assert {tuple(colour) for colour in colours} <= palette and len(colours) > 1


def test_missing_weights(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in sorted(state) if "classifier.weight" in name or "class_predictor.weight" in name)
    save_file({k: v for k, v in state.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MegaSRError, match=f"lacks weights.*: .*{lost}"):
        load_segmentation(str(folder))
    inference = {k: v for k, v in state.items() if not k.startswith("criterion.")}  # Mask2Former's training loss
    save_file(inference, folder / "model.safetensors", {"format": "pt"})
    load_segmentation(str(folder))


def test_another_architecture(segformer: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(segformer, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BeitForSemanticSegmentation"]}))
    with pytest.raises(MegaSRError, match=r"is a BeitForSemanticSegmentation; needed: SegformerForSemanticSeg"):
        load_segmentation(str(folder))


def test_other_spellings_of_the_classes(renamed: Callable[..., Path]) -> None:
    spelt = list(NAMES)
    spelt[7], spelt[8], spelt[12] = "bed ", "windowpane, window", "Person, individual, someone"
    spelt[89] = "television, television receiver, television set"
    spelt[105] = "conveyor belt"  # which no public copy has: a stranger, but one of few
    load_segmentation(str(renamed(spelt)))


def test_other_classes_are_refused(renamed: Callable[..., Path], tmp_path: Path) -> None:
    for names, message in (
        ([f"LABEL_{i}" for i in range(150)], "class 0 is 'LABEL_0'; needed: 'wall'"),
        ([*NAMES[:134], *(f"x{i}" for i in range(16))], "class 134 is 'x0'; needed: 'sconce'"),
        ([*NAMES[1:], NAMES[0]], "class 0 is 'building'; needed: 'wall'"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            load_segmentation(str(renamed(names)))
        assert "copy" in str(caught.value)
    folder = write_segmentation(tmp_path / "few", names=["background", "aeroplane", "bicycle"])
    with pytest.raises(UsageError, match="has other classes than ADE20K's 150: it has 3"):
        load_segmentation(str(folder))
