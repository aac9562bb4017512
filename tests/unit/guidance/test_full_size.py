"""What all extractors of public checkpoints promise, on small random networks in the public formats."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from megasr.guidance.edges import load_hed, load_sketch
from megasr.guidance.extractors import MapNetwork, Views
from megasr.guidance.regions import load_depth, load_segmentation
from megasr.provenance import weights_digest
from tests.helpers.extractor_checkpoints import (
    SEGMENTATION_KINDS,
    random_pictures,
    write_depth,
    write_hed,
    write_segmentation,
    write_sketch,
)

Kind = tuple[Callable[[Path], Path], Callable[[str], MapNetwork]]
KINDS: dict[str, Kind] = {
    "hed": (write_hed, load_hed),
    "sketch": (write_sketch, load_sketch),
    "depth": (write_depth, load_depth),
    **{kind: (partial(write_segmentation, kind=kind), load_segmentation) for kind in SEGMENTATION_KINDS},
}
LEAST, COLOURS, ONE_MAP = 32, 3, 1  # channels


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Kind]:
    write, _ = kind = KINDS[request.param]
    return str(write(tmp_path_factory.mktemp(request.param))), kind


@pytest.fixture
def network(source: tuple[str, Kind]) -> MapNetwork:
    path, (_, load) = source
    before = torch.get_rng_state()
    loaded = load(path)
    assert torch.equal(before, torch.get_rng_state()), "loading draws nothing"
    return loaded


@pytest.mark.parametrize("size", [(75, 101), (101, 16)])
def test_maps_have_the_size_of_the_image(network: MapNetwork, size: tuple[int, int]) -> None:
    for name, image in network(Views(random_pictures(2, *size)), network.gives).items():
        assert image.shape == (2, 1 if name in ("hed", "sketch", "depth") else 3, *size)
        assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1 and image.std() > 0


def test_an_image_does_not_see_its_batch(network: MapNetwork) -> None:
    image, names = random_pictures(3), network.outputs
    together = network.decode(network.encode(Views(image)), names)
    alone = network.decode(network.encode(Views(image[1:2])), names)
    for name in names:
        scale = together[name].abs().max().item()
        torch.testing.assert_close(together[name][1:2], alone[name], atol=1e-5 * max(1.0, scale), rtol=1e-4)


def test_frozen_until_it_is_thawed_and_gradients_reach_it(network: MapNetwork) -> None:
    assert not network.train().training
    network.requires_grad_(True)
    assert network.train().training
    raw = network.decode(network.eval().encode(Views(random_pictures(1))), network.outputs)
    sum(value.std() for value in raw.values()).backward()
    reached = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    # Auxiliary heads, and biases before a norm, have none.
    assert len(reached) > len(list(network.parameters())) / 3


def test_an_export_loads_as_the_same_network(source: tuple[str, Kind], network: MapNetwork, tmp_path: Path) -> None:
    path, (_, load) = source
    with torch.no_grad():
        next(p for p in network.parameters() if p.ndim > 1).add_(0.1)  # as fine-tuning does
    network.export(tmp_path / "new" / "folder")
    again = load(str(tmp_path / "new" / "folder"))
    assert weights_digest(again) == weights_digest(network)
    views = Views(random_pictures(1))
    for name, image in network(views, network.gives).items():
        assert torch.equal(again(views, network.gives)[name], image)
    written = "".join(file.read_text() for file in (tmp_path / "new" / "folder").glob("*.json"))
    assert "_name_or_path" not in written and path not in written


def test_bfloat16_stays_close(source: tuple[str, Kind], network: MapNetwork) -> None:
    path, (_, load) = source
    views = Views(random_pictures())
    half = load(path).to(torch.bfloat16)
    representation = half.encode(views)
    assert representation[-1].dtype == torch.bfloat16
    raw, exact = half.decode(representation, half.outputs), network.decode(network.encode(views), network.outputs)
    for name in network.outputs:
        assert raw[name].dtype == torch.float32
        assert torch.corrcoef(torch.stack([raw[name].flatten(), exact[name].flatten()]))[0, 1] > 0.95
    # Colours and ranges of the same raw outputs: a cast of the network must not round them.
    whole = network.finish(exact, network.gives, views.size)
    assert all(torch.equal(m, whole[n]) for n, m in half.finish(exact, half.gives, views.size).items())


def test_no_layer_is_narrower_than_published_ones(network: MapNetwork) -> None:
    """A CPU's results for narrower ones in bfloat16 say nothing of the networks that people use."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    widths = {width for layer in layers for width in (layer.in_channels, layer.out_channels)}
    assert layers and {width for width in widths if width < LEAST} <= {COLOURS, ONE_MAP}
