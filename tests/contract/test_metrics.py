"""Every metric of every protocol: direction, best value, and the field's published numbers."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megasr.errors import MegaSRError
from megasr.evaluation import metrics as distribution
from megasr.evaluation.comparison import deviations
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.folders import evaluate_folder, load_pair
from megasr.evaluation.metrics import FILES
from megasr.evaluation.pairing import pair_by_name
from megasr.evaluation.protocol import PROTOCOLS, WEIGHT_FREE_V1, MetricSpec, Protocol
from megasr.files import file_sha256
from megasr.images import resize, to_uint8, write_png
from megasr.rng import torch_generator
from tests.helpers.metric_weights import WRITERS, write_metric_weights
from tests.helpers.shared import shared

CASES = [pytest.param(p, m, id=f"{p.name}-{m.name}") for p in PROTOCOLS.values() for m in p.metrics if m.pyiqa_name]
FORMULAS = [case for case in CASES if not case.values[1].weights]
DISTINCT = dict.fromkeys(
    replace(metric, optional=False) for protocol in PROTOCOLS.values() for metric in protocol.metrics if metric.weights
)
# The others need a ViT-B of 350 MB from the Hugging Face cache, or weights of a gigabyte.
LEARNED = [pytest.param(m, id=m.name) for m in DISTINCT if set(m.weights) <= set(WRITERS)]
SIZE_PX = 128
BEST = {"psnr": 80.0, "ssim": 1.0, "gmsd": 0.0, "fsim": 1.0, "nlpd": 0.0}  # by pyiqa name; its PSNR ends at 80 dB


@pytest.fixture(scope="module")
def hq() -> torch.Tensor:
    coarse = torch.rand(1, 3, 16, 16, generator=torch_generator(0, "coarse"))
    fine = torch.rand(1, 3, SIZE_PX, SIZE_PX, generator=torch_generator(0, "fine"))
    return ((resize(coarse, SIZE_PX, SIZE_PX) * 0.8 + fine * 0.2).clamp(0, 1) * 255).round() / 255


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_metric_weights(folder, set(WRITERS))
    return folder


def _only(metric: MetricSpec, color_space: str = "ycbcr") -> Protocol:
    return Protocol("only", 1, (metric,), color_space)


@pytest.mark.parametrize(("protocol", "metric"), CASES)
def test_direction_is_pyiqas(protocol: Protocol, metric: MetricSpec) -> None:
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    assert metric.higher_is_better != DEFAULT_CONFIGS[metric.pyiqa_name].get("lower_better", False)
    if not metric.of_set:  # pyiqa calls FID a metric without reference
        assert metric.needs_hq == (DEFAULT_CONFIGS[metric.pyiqa_name]["metric_mode"] == "FR")
    assert set(metric.weights) <= set(FILES)


@pytest.mark.parametrize(("protocol", "metric"), [case for case in CASES if not case.values[1].of_set])
def test_nothing_is_left_to_pyiqas_defaults(protocol: Protocol, metric: MetricSpec) -> None:
    """What pyiqa sets for a metric by its name is written in the spec, with the same value."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    given = dict(metric.arguments) | ({"test_y_channel": True} if metric.on_y else {})
    defaults = dict(DEFAULT_CONFIGS[metric.pyiqa_name]["metric_opts"])
    del defaults["type"]
    assert set(defaults) <= set(given)
    if metric.pyiqa_name != "psnr":  # pyiqa's PSNR is on RGB, the field's on Y
        assert defaults.items() <= given.items()


@pytest.mark.parametrize(("protocol", "metric"), FORMULAS)
def test_perfect_beats_blurred_beats_shuffled(protocol: Protocol, metric: MetricSpec, hq: torch.Tensor) -> None:
    blurred = resize(resize(hq, 32, 32), SIZE_PX, SIZE_PX)
    order = torch.randperm(SIZE_PX * SIZE_PX, generator=torch_generator(0, "order"))
    shuffled = hq.flatten(2)[:, :, order].view_as(hq)
    evaluator = Evaluator(_only(metric, protocol.color_space))
    sign = 1 if metric.higher_is_better else -1
    scores = [sign * evaluator.rows(image, hq, ["image"])[0][metric.name] for image in (hq, blurred, shuffled)]
    assert scores[0] > scores[1] > scores[2]
    assert sign * scores[0] == pytest.approx(BEST[metric.pyiqa_name], abs=1e-4)


@pytest.mark.parametrize("metric", LEARNED)
def test_a_learned_metric_reads_its_files(
    metric: MetricSpec, hq: torch.Tensor, weights_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Real formats and real loading code; the weights are random, so only what holds for any weights is asked."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        evaluator = Evaluator(_only(metric), weights_dir=weights_dir)
    assert (capfd.readouterr(), warned) == (("", ""), [])
    blurred = resize(resize(hq, 32, 32), SIZE_PX, SIZE_PX)
    same, other = (evaluator.vectors(image, hq, ["image"]) for image in (hq, blurred))
    assert same.shape == other.shape == (1, evaluator.width)
    assert not torch.equal(same, other)
    assert evaluator.weights == metric.weights
    if metric.needs_hq and not metric.of_set:
        assert same.item() == pytest.approx(0, abs=1e-6)  # identical images score best
        assert other.item() > 1e-3
    if metric.of_set:
        features = torch.cat([other, same])  # two images of which the second is identical
        assert evaluator.evaluation(features, ["a", "b"]).set_values.keys() == {metric.name}


@pytest.mark.parametrize("metric", LEARNED)
def test_every_file_of_a_learned_metric_is_needed(metric: MetricSpec, weights_dir: Path, tmp_path: Path) -> None:
    for missing in metric.weights:
        for name in set(metric.weights) - {missing}:
            (tmp_path / name).symlink_to(weights_dir / name)
        with pytest.raises(
            MegaSRError,
            match=rf"{re.escape(metric.name)} lacks {re.escape(missing)} \(https://.*Put the files into one folder",
        ):
            Evaluator(_only(metric), weights_dir=tmp_path)
        for link in tmp_path.iterdir():
            link.unlink()


@pytest.mark.parametrize("metric", LEARNED)
def test_a_damaged_file_is_one_line_that_names_metric_and_files(
    metric: MetricSpec, weights_dir: Path, tmp_path: Path
) -> None:
    for name in metric.weights:
        (tmp_path / name).symlink_to(weights_dir / name)
    (tmp_path / metric.weights[-1]).unlink()
    (tmp_path / metric.weights[-1]).write_bytes((weights_dir / metric.weights[-1]).read_bytes()[:1000])
    with pytest.raises(
        MegaSRError,
        match=rf"^{re.escape(metric.name)}: its weights \(.*{re.escape(metric.weights[-1])}\) cannot be loaded",
    ) as found:
        Evaluator(_only(metric), weights_dir=tmp_path)
    assert len(str(found.value).splitlines()) == 1


def test_features_and_distances_of_sets_are_pyiqas(weights_dir: Path, tmp_path: Path) -> None:
    """Features of files against pyiqa's, with the same network; the distance of these features against clean-fid's."""
    from pyiqa.archs.fid_arch import frechet_distance, get_folder_features

    metric = PROTOCOLS["whole-image-v1"].metric("fid")
    for folder, offset in (("sr", 0.0), ("hq", 0.2)):
        for name in range(4):
            pixels = torch.rand(3, 40, 52, generator=torch_generator(name, folder))
            write_png(to_uint8(pixels * 0.8 + offset), tmp_path / folder / f"{name}.png")
    evaluator = Evaluator(_only(metric), weights_dir=weights_dir)
    pairs = pair_by_name(tmp_path / "sr", tmp_path / "hq")
    vectors = torch.stack(list(evaluator.measure(pairs, load_pair)))
    theirs = [
        get_folder_features(str(tmp_path / side), evaluator._features._network, 0, 1, device="cpu", verbose=False)
        for side in ("sr", "hq")
    ]
    assert not any(module.training for module in evaluator._features._network.modules())
    features = np.concatenate(theirs, 1)  # of random weights, about 1e-8: without clamping they would be 1e-3 off
    assert np.allclose(vectors.numpy(), features, rtol=1e-4, atol=1e-5 * np.abs(features).max())
    found = evaluate_folder(tmp_path / "sr", tmp_path / "hq", evaluator)
    (name,) = metric.weights
    assert found.provenance["weights"] == {name: file_sha256(weights_dir / name)[:16]}
    assert found.rows[0] == {"key": "0"}
    # Over the 16 directions that vary most: the root of a 2048 x 2048 matrix takes half a minute.
    used = vectors.view(4, 2, 2048).var((0, 1)).argsort()[-16:]
    first, second = (side[:, used].astype(float) for side in theirs)
    expected = frechet_distance(first.mean(0), np.cov(first.T), second.mean(0), np.cov(second.T))
    assert distribution.frechet_distance(torch.tensor(first), torch.tensor(second)) == pytest.approx(expected, rel=1e-4)
    assert found.set_values["fid"] == distribution.frechet_distance(vectors[:, :2048], vectors[:, 2048:]) > 0


@pytest.mark.golden
@pytest.mark.parametrize(
    ("names", "photographs", "most"),
    [
        (("psnr", "ssim", "niqe"), 40, {"psnr": 1e-3, "ssim": 1e-4, "niqe": 0.02}),
        (("lpips", "dists"), 2, {"lpips": 5e-4, "dists": 5e-4}),
    ],
)
def test_the_published_scores_of_drealsr(
    names: tuple[str, ...], photographs: int, most: dict[str, float], tmp_path: Path
) -> None:
    """OSEDiff's published sr of DRealSR crops, measured again, against its published scores of every image."""
    data, weights = shared("data", "drealsr"), shared("weights", "lpips")
    for name in ("osediff_sr", "hq"):
        (tmp_path / name).mkdir()
        for file in sorted((data / name).iterdir())[:photographs]:
            (tmp_path / name / file.name).symlink_to(file)
    for file in (*weights.iterdir(), data.parent / "niqe_modelparameters.mat"):
        (tmp_path / file.name).symlink_to(file)
    evaluator = Evaluator(PROTOCOLS["stablesr-crops-v1"], metrics=names, weights_dir=tmp_path)
    found = evaluate_folder(tmp_path / "osediff_sr", tmp_path / "hq", evaluator)
    gaps = deviations(found, data / "metrics.csv")
    assert len(found.rows) == photographs and set(gaps.index) == set(names)
    for name in names:
        assert gaps["largest"][name] < most[name]
        assert gaps["median"][name] < most[name] / 10


def test_measuring_does_not_touch_global_state(hq: torch.Tensor) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads = torch.get_num_threads()
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
        for _ in range(10):
            Evaluator(_only(WEIGHT_FREE_V1.metrics[0])).rows(
                hq.expand(8, -1, -1, -1), hq.expand(8, -1, -1, -1), "abcdefgh"
            )
        cudnn = torch.backends.cudnn
        assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (True, False, False)
    Evaluator(WEIGHT_FREE_V1).rows(hq, hq, ["image"])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.get_num_threads() == threads
