"""The evaluator: values, invariance to batching, and what it refuses."""

from __future__ import annotations

import logging
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator, Images, check_keys
from megasr.evaluation.intervals import mean_intervals
from megasr.evaluation.metrics import FEATURES, ImageMetric, frechet_distance
from megasr.evaluation.protocol import FID, PROTOCOLS, WEIGHT_FREE_V1, MetricSpec, Protocol, ntire26_score
from megasr.rng import numpy_generator, torch_generator

PSNR_ONLY = Protocol("psnr-only", 1, WEIGHT_FREE_V1.metrics[:1])


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(WEIGHT_FREE_V1)


@pytest.fixture(scope="module")
def psnr() -> Evaluator:
    return Evaluator(PSNR_ONLY)


def _images(count: int = 3, size_px: int = 64) -> torch.Tensor:
    return (torch.rand(count, 3, size_px, size_px, generator=torch_generator(0, "images")) * 255).round() / 255


def test_a_metric_is_given_sr_first_and_hq_only_where_it_compares() -> None:
    sr, hq = _images(1), torch.zeros(1, 3, 64, 64)
    for needs_hq, expected in ((True, [sr, hq]), (False, [sr])):
        spec = replace(PSNR_ONLY.metrics[0], needs_hq=needs_hq)
        metric, given = ImageMetric(spec, PSNR_ONLY, torch.device("cpu"), None), []
        metric._metric = lambda *images, given=given: given.extend(images) or 1.0
        assert metric(sr, hq, "a", {}) == 1
        assert len(given) == len(expected)
        assert all(torch.equal(*pair) for pair in zip(given, expected, strict=True))


def test_a_metric_that_writes_into_its_images_changes_no_other() -> None:
    def spoil(sr: torch.Tensor, hq: torch.Tensor) -> float:
        return float(sr.zero_().sum() + hq.zero_().sum())

    spoiler = MetricSpec("spoiler", higher_is_better=True, function=spoil)
    image = _images(1)
    found = Evaluator(replace(PSNR_ONLY, metrics=(spoiler, *PSNR_ONLY.metrics))).rows(image * 0.5, image, ["a"])[0]
    assert found["psnr_y"] == Evaluator(PSNR_ONLY).rows(image * 0.5, image, ["a"])[0]["psnr_y"]


def test_the_score_of_a_challenge_is_made_of_the_metrics_of_the_image() -> None:
    """One part less, and it is not taken."""
    assert ntire26_score(0.2, 0.1, 0.7, 0.5, 70.0, 4.0) == pytest.approx(0.8 + 0.9 + 0.7 + 0.5 + 0.7 + 0.6)
    assert ntire26_score(0, 0, 0, 0, 0, 12.0) == 2  # a NIQE above 10 costs no more than 10

    def half(psnr: float, ssim: float) -> float:
        return psnr / 2 + ssim

    made = MetricSpec("made", higher_is_better=True, function=half, of_metrics=("psnr_y", "ssim_y"))
    protocol = replace(WEIGHT_FREE_V1, metrics=(*WEIGHT_FREE_V1.metrics, made))
    images = _images(2)
    evaluator = Evaluator(protocol)
    evaluation = evaluator.evaluation(evaluator.vectors(images * 0.9, images, ["a", "b"]), ["a", "b"])
    assert [row["made"] for row in evaluation.rows] == [row["psnr_y"] / 2 + row["ssim_y"] for row in evaluation.rows]
    assert evaluation.means["made"] == pytest.approx(sum(row["made"] for row in evaluation.rows) / 2)
    assert Evaluator(protocol, metrics=["psnr_y", "made"]).skipped == {"made": "is made of ssim_y, not taken"}


def test_an_optional_metric_is_refused_only_where_it_is_named() -> None:
    optional = replace(PROTOCOLS["whole-image-v2"].metric("qalign"), name="large")
    protocol = replace(WEIGHT_FREE_V1, metrics=(*WEIGHT_FREE_V1.metrics, optional))
    assert replace(protocol, metrics=(*protocol.metrics[:-1], replace(optional, optional=False))).fingerprint == (
        protocol.fingerprint
    )
    lacks = "lacks q-future/one-align (`hf download q-future/one-align`)"
    assert Evaluator(protocol).skipped == {"large": lacks}
    with pytest.raises(MegaSRError, match="weights of metrics are missing: large lacks q-future/one-align"):
        Evaluator(protocol, metrics=["psnr_y", "large"])


def test_a_network_measures_one_image_at_a_time_and_a_formula_several() -> None:
    """Networks of pyiqa keep in themselves what their hooks saw."""
    image = _images(1)
    for weights in ((), ("niqe_modelparameters.mat",)):
        spec = replace(PSNR_ONLY.metrics[0], weights=weights)
        metric, met = ImageMetric(spec, PSNR_ONLY, torch.device("cpu"), None), threading.Barrier(2)

        def meet(*_: torch.Tensor, met: threading.Barrier = met, alone: bool = bool(weights)) -> float:
            try:
                met.wait(timeout=0.2 if alone else 20)
            except threading.BrokenBarrierError:
                return 0.0
            return 1.0

        metric._metric = meet
        with ThreadPoolExecutor(2) as pool:
            values = [pool.submit(metric, image, image, key, {}) for key in "ab"]
        assert [value.result() for value in values] == ([0, 0] if weights else [1, 1])


def test_psnr_of_a_grey_step_is_the_closed_form(psnr: Evaluator) -> None:
    hq, sr = torch.full((1, 3, 32, 32), 100 / 255), torch.full((1, 3, 32, 32), 110 / 255)
    # Ten grey levels are 10 * 219 / 255 levels of limited-range Y.
    expected = 20 * math.log10(255 / (10 * 219 / 255))
    assert psnr.rows(sr, hq, ["grey"])[0]["psnr_y"] == pytest.approx(expected, abs=1e-3)


def test_color_space_reaches_the_metric(psnr: Evaluator) -> None:
    hq = _images(1)
    sr = (hq * 0.9 * 255).round() / 255
    full_range = Evaluator(replace(PSNR_ONLY, color_space="yiq"))
    gap = psnr.rows(sr, hq, ["a"])[0]["psnr_y"] - full_range.rows(sr, hq, ["a"])[0]["psnr_y"]
    assert gap == pytest.approx(20 * math.log10(255 / 219), abs=0.02)


def test_rows_do_not_depend_on_the_batch(evaluator: Evaluator) -> None:
    hq = _images()
    sr = (hq + 0.1 * torch.randn(hq.shape, generator=torch_generator(0, "noise"))).clamp(0, 1)
    together = evaluator.rows(sr, hq, ["a", "b", "c"])
    alone = [evaluator.rows(sr[i : i + 1], hq[i : i + 1], [key])[0] for i, key in enumerate("abc")]
    assert together == alone
    assert [set(row) for row in together] == [{"key", *WEIGHT_FREE_V1.metric_names}] * 3
    assert len({row["psnr_y"] for row in together}) == 3
    assert all(float(torch.tensor(row["ssim_y"])) != row["ssim_y"] for row in together)  # of float64, not of float32


def test_images_are_measured_at_once_by_one_thread_each(psnr: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    hq, together, threads = _images(1), threading.Barrier(3), []

    def load(key: str) -> Images:
        threads.append(torch.get_num_threads())
        together.wait(timeout=20)  # broken unless three images are loaded at once
        return Images(key, hq, hq)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert len(list(psnr.measure("abc", load))) == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert (threads, later) == ([1, 1, 1], [3])
    assert list(psnr.measure([], load)) == []


def test_sr_is_measured_as_8_bit(psnr: Evaluator) -> None:
    hq = _images(1)
    assert psnr.rows(hq + 0.4 / 255, hq, ["a"])[0]["psnr_y"] == psnr.rows(hq, hq, ["a"])[0]["psnr_y"]
    assert psnr.rows(hq + 0.6 / 255, hq, ["a"])[0]["psnr_y"] < 60
    assert psnr.rows(hq, (hq + 0.4 / 255).clamp(max=1), ["a"]) == psnr.rows(hq, hq, ["a"])


def test_the_border_is_cut_off(psnr: Evaluator) -> None:
    hq = _images(1)
    sr = hq.clone()
    sr[..., :4, :] = 0
    sr[..., -4:] = 0
    perfect = psnr.rows(hq, hq, ["a"])[0]["psnr_y"]
    assert psnr.rows(sr, hq, ["a"])[0]["psnr_y"] < perfect
    assert Evaluator(replace(PSNR_ONLY, border_px=4)).rows(sr, hq, ["a"])[0]["psnr_y"] == perfect


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_image_stops_the_evaluation(psnr: Evaluator, value: float) -> None:
    hq = _images(2)
    sr = hq.clone()
    sr[1, 0, 0, :2] = value
    with pytest.raises(MegaSRError, match="'second' has 2 non-finite"):
        psnr.rows(sr, hq, ["first", "second"])


def test_a_non_finite_metric_names_key_and_metric() -> None:
    evaluator = Evaluator(PSNR_ONLY)
    evaluator._metrics[0]._metric = lambda sr, hq: torch.tensor(math.inf)
    with pytest.raises(MegaSRError, match="psnr_y of 'lake' is inf"):
        evaluator.rows(_images(1), _images(1), ["lake"])


@pytest.mark.parametrize(
    ("sr", "hq", "keys", "message"),
    [
        (_images(2), _images(2), ["a"], "1 keys for 2 images: a"),
        (_images(2), _images(2), ["a", "a"], "repeated: a"),
        (_images(2), _images(2)[..., :32], ["a", "b"], "equal sizes"),
        (_images(1), _images(2), ["a"], "equal sizes"),
        (_images(1), _images(1) * 2 - 1, ["a"], r"hq of 'a': values must be .* got \[-"),
        (_images(1), _images(1) * 2, ["a"], r"hq of 'a': values must be .* got \[0"),
        (_images(1), _images(1) * math.nan, ["a"], r"hq of 'a': values must be .* got \[nan"),
        (_images(1), (_images(1) * 255).to(torch.uint8), ["a"], "hq: expected float RGB"),
        (_images(1)[0], _images(1), ["a"], "sr: expected float RGB"),
    ],
)
def test_what_does_not_fit_is_refused(
    psnr: Evaluator, sr: torch.Tensor, hq: torch.Tensor, keys: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        psnr.rows(sr, hq, keys)


def test_what_does_not_fit_the_evaluator_is_refused() -> None:
    image = _images(1)
    with pytest.raises(UsageError, match="'a' has hq, but the evaluator was made with has_hq=False"):
        Evaluator(PSNR_ONLY, has_hq=False).vectors(image, image, ["a"])
    with pytest.raises(UsageError, match="'a' is 64x32 px; psnr-only measures 32x32 px"):
        Evaluator(replace(PSNR_ONLY, size_px=32)).vectors(image[:, :, :32], image[:, :, :32], ["a"])
    turned = Images("a", image[:, :, :32], image[..., :32])
    with pytest.raises(UsageError, match="for 'a': metrics compare equal sizes"):
        list(Evaluator(PSNR_ONLY).measure([turned], lambda images: images))


def test_an_evaluation_can_be_repeated(psnr: Evaluator) -> None:
    values, keys = torch.rand(12, 1, generator=torch_generator(0, "values"), dtype=torch.float64), "abcdefghijkl"
    found = psnr.evaluation(values, keys)
    assert [found.intervals["psnr_y"]] == mean_intervals(values.numpy(), keys, numpy_generator(0, "intervals"))
    assert (found.fingerprint, found.means) == (PSNR_ONLY.fingerprint, {"psnr_y": pytest.approx(values.mean())})


def test_distances_are_of_the_features_behind_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = Evaluator(PSNR_ONLY)
    monkeypatch.setattr(evaluator, "_set_specs", [FID])
    vectors = torch.rand(3, 1 + 2 * FEATURES, generator=torch_generator(0, "features"), dtype=torch.float64)
    found = evaluator.evaluation(vectors, "abc")
    assert found.set_values == {"fid": frechet_distance(vectors[:, 1 : 1 + FEATURES], vectors[:, 1 + FEATURES :])}
    assert [row["psnr_y"] for row in found.rows] == vectors[:, 0].tolist()


def test_summary_is_the_mean_over_exactly_the_set(psnr: Evaluator) -> None:
    rows = [{"key": "a", "psnr_y": 20.0}, {"key": "b", "psnr_y": 30.0}]
    assert psnr.summary(rows, ["b", "a"]) == {"psnr_y": 25.0}
    with pytest.raises(UsageError, match="missing: c"):
        psnr.summary(rows, ["a", "b", "c"])
    with pytest.raises(UsageError, match="unexpected: b"):
        psnr.summary(rows, ["a"])
    with pytest.raises(UsageError, match="repeated: a"):
        psnr.summary([*rows, rows[0]])
    with pytest.raises(UsageError, match="empty"):
        psnr.summary([])


def test_all_key_problems_are_listed_at_once() -> None:
    with pytest.raises(UsageError, match="missing: c; unexpected: d, e; repeated: a"):
        check_keys(["a", "a", "d", "e"], ["a", "c"])


def test_one_image_has_no_distance_of_sets(psnr: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psnr, "_set_specs", [FID])
    found = psnr.evaluation(torch.ones(1, 1 + 2 * FEATURES, dtype=torch.float64), ["a"])
    assert (found.set_values, found.skipped) == ({}, {"fid": "needs two images"})


def test_arguments_of_ssim_are_not_lost() -> None:
    plain, cropped, rgb = (
        Protocol("ssim", 1, (replace(WEIGHT_FREE_V1.metrics[1], arguments=arguments, on_y=on_y),))
        for arguments, on_y in (
            ((("downsample", False),), True),
            ((("downsample", False), ("crop_border", 16)), True),
            ((), False),
        )
    )
    sr, hq = _images(2).split(1)
    assert len({Evaluator(protocol).rows(sr, hq, ["a"])[0]["ssim_y"] for protocol in (plain, cropped, rgb)}) == 3


def test_it_is_quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Evaluator(WEIGHT_FREE_V1).rows(_images(1), _images(1), ["a"])
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []
