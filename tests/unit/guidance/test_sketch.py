from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megasr.errors import MegaSRError, UsageError
from megasr.guidance.edges import SketchNetwork, load_sketch
from megasr.guidance.extractors import Views
from tests.helpers.extractor_checkpoints import random_pictures, sketch_state, write_sketch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sketch(tmp_path_factory.mktemp("sketch"))


@pytest.fixture
def network(checkpoint: Path) -> SketchNetwork:
    return load_sketch(str(checkpoint))


def plain_drawing(state: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """The published forward pass, one operation after another, for sides that are multiples of 4: lines are dark."""

    def conv(x: torch.Tensor, name: str, reflect: int = 0, **more: int) -> torch.Tensor:
        x = F.pad(x, (reflect,) * 4, mode="reflect") if reflect else x
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **more)

    x = F.relu(F.instance_norm(conv(image, "model0.1", reflect=3)))
    for place in (0, 3):
        x = F.relu(F.instance_norm(conv(x, f"model1.{place}", stride=2, padding=1)))
    for block in range(3):
        y = F.relu(F.instance_norm(conv(x, f"model2.{block}.conv_block.1", reflect=1)))
        x = x + F.instance_norm(conv(y, f"model2.{block}.conv_block.5", reflect=1))
    for place in (0, 3):
        weight, bias = state[f"model3.{place}.weight"], state[f"model3.{place}.bias"]
        x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
        x = F.relu(F.instance_norm(x))
    return torch.sigmoid(conv(x, "model4.1", reflect=3))


def test_equals_the_published_drawing_inverted(network: SketchNetwork) -> None:
    image = random_pictures(2, 76, 100)
    found = network(Views(image), ("sketch",))["sketch"]
    torch.testing.assert_close(found, 1 - plain_drawing(sketch_state(), image), atol=1e-5, rtol=0)
    assert found.std() > 0.05


def test_other_sizes_are_padded_by_reflection_and_cut(network: SketchNetwork) -> None:
    image = random_pictures(2, 75, 101)
    padded = F.pad(image, (0, 3, 0, 1), mode="reflect")
    expected = (1 - plain_drawing(sketch_state(), padded))[..., :75, :101]
    torch.testing.assert_close(network(Views(image), ("sketch",))["sketch"], expected, atol=1e-5, rtol=0)


def test_the_public_widths_load(tmp_path: Path) -> None:
    network = load_sketch(str(write_sketch(tmp_path, width=64).parent))
    assert sum(p.numel() for p in network.parameters()) == 4_290_945
    assert network.model4[1].weight.shape == (1, 64, 7, 7)


def test_a_tiny_image_is_refused(network: SketchNetwork) -> None:
    with pytest.raises(UsageError, match=r"sketch: images must be 8 px or more .* got 7 x 40"):
        network(Views(random_pictures(1, 7, 40)), ("sketch",))


def test_wrong_files(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(MegaSRError, match=r"sketch network .*x.pth cannot be read"):
        load_sketch(str(path))
    state = sketch_state()
    for wrong, message in (
        ({k: v for k, v in state.items() if not k.startswith("model2.1")}, "Missing key|Unexpected key"),
        ({k: v for k, v in state.items() if k != "model4.1.bias"}, "Missing key.*model4.1.bias"),
        (state | {"model3.0.weight": torch.zeros(16, 32, 3, 3)}, "size mismatch for model3.0.weight"),
        ({}, "Missing key"),
    ):
        torch.save(wrong, path)
        with pytest.raises(MegaSRError, match=rf"sketch network .*x.pth cannot be used: .*({message})"):
            load_sketch(str(path))
    with pytest.raises(MegaSRError, match=r"has neither sketch.safetensors nor sk_model.pth"):
        load_sketch(str(checkpoint.parent.parent))
