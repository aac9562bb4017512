"""Extractors with their public weights, where these are: they load, agree with people's outlines, and can be tuned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.guidance.boundaries import EdgeMethod
from experiments.guidance.bsds import list_bsds, read_drawn
from experiments.guidance.ods import boundary_counts, score, suppress_non_maxima
from megasr.guidance.extract import load_network
from megasr.guidance.extractors import Views
from megasr.guidance.registry import get_guidance
from megasr.images import from_uint8, read_image, resize
from megasr.training.distillation import DistillationModule
from tests.helpers.shared import shared

FILES = {"hed": ("hed", "ControlNetHED.fp16.pth"), "pidinet": ("pidinet", "table5_pidinet.pth")}
THRESHOLDS = (0.2, 0.35, 0.5, 0.65, 0.8)


@pytest.mark.parametrize("name", FILES)
def test_edges_are_where_people_draw_them(name: str) -> None:
    """A photograph of BSDS500, which both were trained on: far above Canny's F-measure on it."""
    source, path = shared("weights", *FILES[name]), list_bsds(shared("data", "bsds500"), "val")[5]
    image = read_drawn(path)
    hq = from_uint8(image.hq)[None]

    def f_measure(method: str, thresholds: tuple[float, ...]) -> float:
        edges = suppress_non_maxima(EdgeMethod(method).edge_map(hq))
        return score(boundary_counts(edges, image.truths, thresholds)[None], thresholds).ods

    assert f_measure(f"{name}={source}", THRESHOLDS) > f_measure("canny", (0.5,)) + 0.1


@pytest.mark.parametrize("name", FILES)
def test_public_weights_are_tuned_for_lq(name: str, tmp_path: Path) -> None:
    """One step of PGFT on a crop moves the maps of lq towards those of hq, and the export is read again."""
    source = str(shared("weights", *FILES[name]))
    file = sorted((shared("data", "drealsr") / "hq").iterdir())[3]
    hq = from_uint8(read_image(file))[None, :, 100:196, 100:196]
    lq_up = resize(resize(hq, 24, 24), 96, 96)
    module = DistillationModule(name, source, lora_rank=2)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 1e-4)

    def loss() -> torch.Tensor:
        return sum(module._weight(kind) * value for kind, value in module._losses(hq, lq_up).items())

    before = loss()
    before.backward()
    optimizer.step()
    assert loss() < before
    module.export(tmp_path)
    tuned, plain = (load_network(get_guidance(name), place) for place in (str(tmp_path), source))
    with torch.no_grad():
        found, first = (network(Views(lq_up), (name,))[name] for network in (tuned, plain))
    assert 0 < (found - first).abs().max() < 1
