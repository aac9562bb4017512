from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megasr.errors import MegaSRError, UsageError
from megasr.guidance.edges import HedNetwork, load_hed
from megasr.guidance.extractors import Views
from tests.helpers.extractor_checkpoints import hed_state, random_pictures, write_hed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hed(tmp_path_factory.mktemp("hed"))


@pytest.fixture
def network(checkpoint: Path) -> HedNetwork:
    return load_hed(str(checkpoint))


def plain_hed(state: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """The published forward pass, one operation after another: the logit that the sigmoid is taken of."""
    x, sides = image * 255 - state["norm"], []
    for block in range(1, 6):
        if block > 1:
            x = F.max_pool2d(x, kernel_size=2, stride=2)
        place = 0
        while f"block{block}.convs.{place}.weight" in state:
            name = f"block{block}.convs.{place}"
            x = F.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))
            place += 1
        side = F.conv2d(x, state[f"block{block}.projection.weight"], state[f"block{block}.projection.bias"])
        sides.append(F.interpolate(side, image.shape[-2:], mode="bilinear", align_corners=False))
    return sum(sides) / 5


def test_equals_the_published_forward_pass(network: HedNetwork) -> None:
    image = random_pictures()
    logits = plain_hed(hed_state(), image)
    raw = network.decode(network.encode(Views(image)), ("hed",))
    torch.testing.assert_close(raw["hed"], logits, atol=1e-4, rtol=1e-4)
    found = network(Views(image), ("hed",))["hed"]
    torch.testing.assert_close(found, torch.sigmoid(logits), atol=1e-5, rtol=0)
    assert found.std() > 0.01  # a flat map would be equal to anything flat


def test_the_public_widths_load_from_half_precision(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in hed_state((64, 128, 256, 512, 512)).items()}
    torch.save(state, tmp_path / "ControlNetHED.pth")
    network = load_hed(str(tmp_path))
    assert network.dtype == torch.float32
    assert set(network.state_dict()) == set(state)
    image = random_pictures(1, 33, 40)
    expected = torch.sigmoid(plain_hed({k: v.float() for k, v in state.items()}, image))
    torch.testing.assert_close(network(Views(image), ("hed",))["hed"], expected, atol=1e-4, rtol=0)


def test_a_tiny_image_is_refused(network: HedNetwork) -> None:
    with pytest.raises(UsageError, match=r"hed: images must be 16 px or more .* got 15 x 40"):
        network(Views(random_pictures(1, 15, 40)), ("hed",))


def test_truncated_file(checkpoint: Path, tmp_path: Path) -> None:
    for name, content in (("a.pth", checkpoint.read_bytes()), ("b.safetensors", b"\x80" + bytes(60)), ("c.pth", b"")):
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(MegaSRError, match=rf"HED network .*{name} cannot be read") as caught:
            load_hed(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=2))
    with pytest.raises(MegaSRError, match="cannot be read"):
        load_hed(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_wrong_weights(tmp_path: Path) -> None:
    state, path = hed_state(), tmp_path / "x.pth"
    for wrong, message in (
        ({k: v for k, v in state.items() if k != "block3.convs.1.bias"}, r"Missing key.*block3.convs.1.bias"),
        (state | {"moduleVggOne.0.weight": torch.zeros(1)}, r"Unexpected key.*moduleVggOne.0.weight"),
        (state | {"norm": torch.zeros(3)}, "size mismatch for norm"),
        ({}, "Missing key"),
        ({"step": 3}, "not a state dict"),
        ([1, 2], "not a state dict"),
    ):
        torch.save(wrong, path)
        with pytest.raises(MegaSRError, match=rf"HED network .*x.pth cannot be used: .*{message}"):
            load_hed(str(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MegaSRError, match=r"has neither hed.safetensors nor ControlNetHED.pth"):
        load_hed(str(tmp_path))
    with pytest.raises(MegaSRError, match=r"nowhere.pth"):
        load_hed(str(tmp_path / "nowhere.pth"))
