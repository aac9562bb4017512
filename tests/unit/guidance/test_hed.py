from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from megasr.errors import MegaSRError, UsageError
from megasr.guidance.edges import HedNetwork, load_hed
from megasr.guidance.extractors import Views
from megasr.provenance import weights_digest
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


def test_an_image_does_not_see_its_batch(network: HedNetwork) -> None:
    image = random_pictures(3)
    together = network(Views(image), ("hed",))["hed"]
    torch.testing.assert_close(together[1:2], network(Views(image[1:2]), ("hed",))["hed"], atol=1e-5, rtol=0)


def test_bfloat16_stays_close(network: HedNetwork, checkpoint: Path) -> None:
    views = Views(random_pictures())
    half = load_hed(str(checkpoint)).to(torch.bfloat16)
    assert half.encode(views)[-1].dtype == torch.bfloat16
    found = half(views, ("hed",))["hed"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, network(views, ("hed",))["hed"], atol=0.01, rtol=0)


def test_frozen_until_it_is_thawed(network: HedNetwork) -> None:
    assert not network.train().training
    network.requires_grad_(True)
    assert network.train().training
    network.decode(network.encode(Views(random_pictures(1))), ("hed",))["hed"].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_export_loads_as_the_same_network(network: HedNetwork, tmp_path: Path) -> None:
    network.to(torch.bfloat16).export(tmp_path / "new" / "folder")
    written = load_file(tmp_path / "new" / "folder" / "hed.safetensors")
    assert set(written) == set(hed_state()) and {value.dtype for value in written.values()} == {torch.float32}
    again = load_hed(str(tmp_path / "new" / "folder"))
    assert weights_digest(again) == weights_digest(network.float())


def test_loading_draws_nothing(checkpoint: Path) -> None:
    before = torch.get_rng_state()
    load_hed(str(checkpoint))
    assert torch.equal(before, torch.get_rng_state())


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
