"""The random networks of the tests compute in bfloat16 what they do in float32, on every CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from megasr.guidance.edges import load_hed, load_sketch
from megasr.guidance.regions import load_depth, load_segmentation
from tests.helpers.extractor_checkpoints import (
    SEGMENTATION_KINDS,
    write_depth,
    write_hed,
    write_segmentation,
    write_sketch,
)

WRITERS = {"hed": write_hed, "sketch": write_sketch, "depth": write_depth}
WRITERS |= {kind: partial(write_segmentation, kind=kind) for kind in SEGMENTATION_KINDS}
LOADERS = {"hed": load_hed, "sketch": load_sketch, "depth": load_depth}
LEAST, COLOURS, ONE_MAP = 32, 3, 1  # channels


@pytest.mark.parametrize("name", WRITERS)
def test_no_layer_is_narrower_than_published_ones(name: str, tmp_path: Path) -> None:
    """What a CPU makes of narrower ones says nothing of the networks that people use."""
    write: Callable[[Path], Path] = WRITERS[name]
    network = LOADERS.get(name, load_segmentation)(str(write(tmp_path)))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert layers
    widths = {width for layer in layers for width in (layer.in_channels, layer.out_channels)}
    assert {width for width in widths if width < LEAST} <= {COLOURS, ONE_MAP}
