"""The count of operations: the unit, and that the step's and the extractors' sizes are what is known of them."""

from __future__ import annotations

import pytest
import torch

from experiments.benchmarks.extraction_cost import count, depth_network, extraction


def test_a_multiply_add_is_two_operations() -> None:
    a, b = torch.rand(10, 20), torch.rand(20, 30)
    assert count(lambda: a @ b) == pytest.approx(2 * 10 * 20 * 30 / 1e9)


def test_depth_anything_has_its_published_number_of_parameters() -> None:
    """24.8, 97.5 and 335.3 million, of the authors' README."""
    for size, millions in {"small": 24.8, "base": 97.5, "large": 335.3}.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in depth_network(size).parameters()) / 1e6
        assert parameters == pytest.approx(millions, rel=0.01)


def test_a_larger_depth_network_costs_more() -> None:
    costs = extraction()
    assert costs["depth_small"] < costs["depth_base"] < costs["depth_large"]
    assert costs["clip_vit_h14"] == pytest.approx(334, rel=0.05)  # 2 x 167 GMAC, as open_clip counts it
    assert all(cost > 0 for cost in costs.values())
