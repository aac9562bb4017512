"""Every distribution of the drawn parameters, against the numbers of the field."""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from data_pipelines.degradations.presets import get_degradation
from data_pipelines.degradations.sampling import KERNEL_SIZES, KERNELS, MODES

N = 4000
# Real-ESRGAN x4plus with SeeSR's qualities, and StableSR's: what their configuration files say, not what ours does.
FIELD = {
    "realesrgan_strong": {
        "sigma": [(0.2, 3.0), (0.2, 1.5)], "beta_g": (0.5, 4.0), "beta_p": (1.0, 2.0), "second_blur": 0.8,
        "scales": [(0.15, 1.5), (0.3, 1.2)], "noise": [(1, 30), (1, 25)], "poisson": [(0.05, 3.0), (0.05, 2.5)],
        "quality": [(30, 95), (30, 95)],
    },
    "stablesr_mild": {
        "sigma": [(0.2, 1.5), (0.2, 1.0)], "beta_g": (0.5, 2.0), "beta_p": (1.0, 1.5), "second_blur": 0.5,
        "scales": [(0.3, 1.5), (0.6, 1.2)], "noise": [(1, 15), (1, 12)], "poisson": [(0.05, 2.0), (0.05, 1.0)],
        "quality": [(60, 95), (60, 100)],
    },
}  # fmt: skip


@functools.cache
def drawn(preset: str) -> list[list]:
    """The operations of N samples; those that only resize are left out."""
    params = get_degradation(preset, 4).sample_params(11, [f"image-{i}" for i in range(N)])
    return [p["ops"] for p in params if any(op is not None for op in p["ops"][:-1])]


def share(hits: int, total: int, expected: float) -> None:
    """A share is what it should be, within four standard errors."""
    assert abs(hits / total - expected) < 4 * np.sqrt(expected * (1 - expected) / total) + 1e-9


def uniform(values: list[float], low: float, high: float) -> None:
    assert low <= min(values) and max(values) <= high
    assert kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


def halves(values: list[float], low: float, high: float) -> None:
    """Half of the draws uniform below 1, half above."""
    below = [v for v in values if v < 1] if low < 1 else [v for v in values if v == 1]
    share(len(below), len(values), 0.5)
    if low < 1:
        uniform(below, low, 1)
    uniform([v for v in values if v > 1], 1, high)


@pytest.mark.parametrize("preset", FIELD)
@pytest.mark.parametrize("order", [0, 1])
def test_blurs(preset: str, order: int) -> None:
    field, samples = FIELD[preset], drawn(preset)
    blurs = [ops[4 * order] for ops in samples if ops[4 * order] is not None]
    share(len(blurs), len(samples), 1.0 if order == 0 else field["second_blur"])
    sizes = Counter(blur["size"] for blur in blurs)
    assert set(sizes) == set(KERNEL_SIZES)
    for count in sizes.values():
        share(count, len(blurs), 1 / len(KERNEL_SIZES))
    sinc = [blur for blur in blurs if blur["kernel"] == "sinc"]
    share(len(sinc), len(blurs), 0.1)
    uniform([blur["cutoff"] for blur in sinc if blur["size"] < 13], np.pi / 3, np.pi)
    uniform([blur["cutoff"] for blur in sinc if blur["size"] >= 13], np.pi / 5, np.pi)
    assert min(blur["cutoff"] for blur in sinc if blur["size"] == 13) < np.pi / 3
    others = [blur for blur in blurs if blur["kernel"] != "sinc"]
    for kernel, expected in KERNELS.items():
        kind = [blur for blur in others if blur["kernel"] == kernel]
        share(len(kind), len(others), expected)
        uniform([blur["sigma_x"] for blur in kind], *field["sigma"][order])
        if "aniso" in kernel:
            uniform([blur["sigma_y"] for blur in kind], *field["sigma"][order])
            uniform([blur["theta"] for blur in kind], -np.pi, np.pi)
        else:
            assert all(blur["sigma_x"] == blur["sigma_y"] and blur["theta"] == 0 for blur in kind)
        if "_" in kernel:
            halves([blur["beta"] for blur in kind], *field["beta_p" if "plateau" in kernel else "beta_g"])


@pytest.mark.parametrize("preset", FIELD)
@pytest.mark.parametrize("order", [0, 1])
def test_resizes(preset: str, order: int) -> None:
    samples, base = drawn(preset), (1.0, 0.25)[order]
    resizes = [ops[4 * order + 1] for ops in samples]
    scales = [resize["scale"] / base for resize in resizes]
    up, down = ([s for s in scales if s > 1], [s for s in scales if s < 1])
    share(len(up), len(scales), (0.2, 0.3)[order])
    share(len(down), len(scales), (0.7, 0.4)[order])
    low, high = FIELD[preset]["scales"][order]
    uniform(up, 1, high)
    uniform(down, low, 1)
    for mode in MODES:
        share(sum(resize["mode"] == mode for resize in resizes), len(resizes), 1 / 3)


@pytest.mark.parametrize("preset", FIELD)
@pytest.mark.parametrize("order", [0, 1])
def test_noises_and_qualities(preset: str, order: int) -> None:
    field, samples = FIELD[preset], drawn(preset)
    noises = [ops[4 * order + 2] for ops in samples]
    gaussian = [op["sigma"] for op in noises if op["op"] == "gaussian_noise"]
    share(len(gaussian), len(noises), 0.5)
    uniform(gaussian, *field["noise"][order])
    uniform([op["scale"] for op in noises if op["op"] == "poisson_noise"], *field["poisson"][order])
    share(sum(op["grey"] for op in noises), len(noises), 0.4)
    assert len({op["offset"] for op in noises}) > 0.99 * len(noises)
    compressions = [ops[3] if order == 0 else ops[7] or ops[10] for ops in samples]
    low, high = field["quality"][order]
    counts = Counter(op["quality"] for op in compressions)
    assert set(counts) == set(range(low, high + 1))
    assert max(abs(count / len(samples) - 1 / len(counts)) for count in counts.values()) < 0.012


@pytest.mark.parametrize("preset", FIELD)
def test_the_end_has_both_orders(preset: str) -> None:
    samples = drawn(preset)
    share(sum(ops[7] is None for ops in samples), len(samples), 0.5)
    assert all((ops[7] is None) != (ops[10] is None) for ops in samples)
    assert all(ops[8]["scale"] == 0.25 for ops in samples)
    sinc = [ops[9] for ops in samples if ops[9] is not None]
    share(len(sinc), len(samples), 0.8)
    uniform([op["cutoff"] for op in sinc], np.pi / 3, np.pi)
    assert {op["size"] for op in sinc} == set(KERNEL_SIZES)


def test_choices_are_independent_of_each_other() -> None:
    """Numbers that are drawn one after the other are not each other's shadow."""
    samples = drawn("realesrgan_strong")
    columns = np.array([
        [ops[0]["size"], ops[1]["scale"], ops[2]["op"] == "gaussian_noise", ops[2]["grey"], ops[3]["quality"],
         ops[5]["scale"], ops[6]["grey"], ops[7] is None, ops[9] is None] for ops in samples
    ], float)  # fmt: skip
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 4 / np.sqrt(len(samples))


def test_mild_leaves_one_in_a_hundred_untouched() -> None:
    share(N - len(drawn("stablesr_mild")), N, 0.01)
    assert len(drawn("realesrgan_strong")) == N


def test_first_order_is_blur_resize_noise_jpeg() -> None:
    for ops in drawn("first_order")[:50]:
        assert [op["op"].split("_")[-1] for op in ops] == ["blur", "resize", "noise", "jpeg"]
        assert ops[1]["scale"] == 0.25
    strong, first = (get_degradation(name, 4).orders for name in ("realesrgan_strong", "first_order"))  # type: ignore[attr-defined]
    assert first == (replace(strong[0], resize=None),), "the same numbers"


def test_a_draw_is_a_function_of_seed_key_and_variant() -> None:
    strong = get_degradation("realesrgan_strong", 4)
    alone = [strong.sample_params(3, [key], variant=2)[0] for key in ("a", "b")]
    assert strong.sample_params(3, ["b", "a"], variant=2) == alone[::-1]
    different = [strong.sample_params(3, ["a"])[0], strong.sample_params(4, ["a"], variant=2)[0], alone[1]]
    assert all(other != alone[0] for other in different)
    assert json.loads(json.dumps(alone)) == alone, "plain data, so that it can be logged and replayed"
