"""Prior-guided fine-tuning: it repairs, every setting does something, and what it exports loads anywhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data_pipelines.embedded import WorldDataModule
from megasr.errors import MegaSRError, UsageError
from megasr.guidance.extract import load_network
from megasr.guidance.extractors import Views
from megasr.guidance.registry import get_guidance
from megasr.guidance.tiny import build_tiny, load_tiny
from megasr.images import resize
from megasr.pretraining.module import Export
from megasr.semantics.clip import VisionConfig, VisionEncoder, load_clip
from megasr.training import distillation as losses
from megasr.training.distillation import DistillationModule, answer_error, lq_up_of
from tests.helpers.extractor_checkpoints import (
    write_depth,
    write_hed,
    write_mlsd,
    write_pidinet,
    write_segmentation,
    write_sketch,
)
from tests.helpers.training import LossCurve, fit

COLORS = [(0.2 * i, 1 - 0.2 * i, 0.5) for i in range(5)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small map network with random weights."""
    folder = tmp_path_factory.mktemp("small")
    build_tiny([f"class {i}" for i in range(5)], COLORS).export(folder)
    return str(folder)


def images(count: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """hq and lq_up."""
    hq = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return hq, resize(resize(hq, 16, 16), 64, 64)


def learn(module: DistillationModule, steps: int, learning_rate: float = 1e-3) -> tuple[float, float]:
    """(first, last) loss of some steps on one batch."""
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], learning_rate)
    found = []
    for _ in range(steps):
        loss = torch.stack([module._weight(n) * v for n, v in module._losses(*images()).items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found[0], found[-1]


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("strategy", ["representation", "output", "both"])
def test_it_repairs_and_the_export_is_what_was_tuned(small: str, strategy: Any, rank: int, tmp_path: Path) -> None:
    module = DistillationModule("hed", small, strategy, lora_rank=rank)
    teacher = {name: value.clone() for name, value in module.teacher.state_dict().items()}
    first, last = learn(module, 8, 5e-4)
    assert last < 0.98 * first
    assert all(torch.equal(value, teacher[name]) for name, value in module.teacher.state_dict().items())
    module.export(tmp_path)
    network, (_, lq_up) = load_tiny(str(tmp_path)), images()
    found, expected = network(Views(lq_up), ("hed", "depth")), module.student.answers(lq_up)
    assert all((found[name] - expected[name]).abs().max() < 2e-3 for name in found), "fp16 is written"
    before = module.teacher.answers(lq_up)
    assert (found["hed"] - before["hed"]).abs().max() > 2e-3


def test_lora_trains_little_and_the_heads_of_unused_outputs_rest(small: str) -> None:
    def trained(**settings: Any) -> set[str]:
        module = DistillationModule("hed", small, **settings)
        return {name for name, p in module.named_parameters() if p.requires_grad}

    whole, features = trained(), trained(strategy="representation")
    assert not any("teacher" in name for name in whole)
    assert any("heads" in name for name in whole)
    assert features and not any("heads" in name or "laterals" in name for name in features)
    assert all("lora" in name for name in trained(lora_rank=2))


@pytest.mark.parametrize(
    ("network", "write"),
    [
        ("hed", write_hed),
        ("pidinet", write_pidinet),
        ("sketch", write_sketch),
        ("mlsd", write_mlsd),
        ("depth", write_depth),
        ("segmentation", write_segmentation),
    ],
)
def test_full_size_networks_are_tuned_and_load_where_the_plain_ones_do(
    network: str, write: Any, tmp_path: Path
) -> None:
    source = str(write(tmp_path / "plain"))
    module = DistillationModule(network, source, lora_rank=2)
    first, last = learn(module, 4, 1e-2)
    assert last < first
    module.export(tmp_path / "tuned")
    tuned = load_network(get_guidance(network), str(tmp_path / "tuned"))
    plain = load_network(get_guidance(network), source)
    _, lq_up = images()
    found, expected, before = (
        part(Views(lq_up), (network,))[network] for part in (tuned, module.student.network, plain)
    )
    assert ((found - expected).abs() > 1e-3).float().mean() < 0.02
    assert not torch.equal(found, before)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_clip_is_tuned_and_loads_where_the_plain_one_does(tmp_path: Path, rank: int) -> None:
    module = DistillationModule("clip", "tiny", lora_rank=rank)
    assert all(".visual." in name for name, p in module.named_parameters() if p.requires_grad)
    first, last = learn(module, 3)
    assert last < first
    module.export(tmp_path)
    _, lq_up = images()
    tokens = VisionEncoder(VisionConfig(model=str(tmp_path)))(lq_up)
    assert (tokens - module.student.answers(lq_up)["tokens"]).abs().max() < 0.02
    words, plain = load_clip(str(tmp_path)), load_clip("tiny")
    assert torch.allclose(words.encode_texts(["brick wall"]), plain.encode_texts(["brick wall"]), atol=1e-3)
    assert not torch.allclose(words.encode_images(lq_up), plain.encode_images(lq_up), atol=1e-3)


def test_every_setting_has_an_effect(small: str) -> None:
    def loss(**settings: Any) -> float:
        module = DistillationModule("hed", small, **settings)
        return sum(module._weight(n) * v.item() for n, v in module._losses(*images()).items())

    default = loss()
    assert loss(strategy="output") < default
    assert loss(representation_weight=2.0) > default
    assert loss(output_weights={"normal": 3.0}) > default
    clip = [DistillationModule("clip", "tiny", vocabulary=words) for words in ("tiny", "general")]
    assert clip[0].student.tagger.labels != clip[1].student.tagger.labels


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"output_weights": {"dept": 1.0}}, UsageError, "dept would do nothing; hed has hed, depth"),
        ({"output_weights": {"hed": 1.0}, "strategy": "representation"}, UsageError, "strategy 'representation'"),
        ({"lora_rank": -1}, UsageError, "lora_rank must not be negative"),
        ({"vocabulary": "tiny"}, UsageError, "hed has no words"),
        ({"network": "canny"}, UsageError, "canny needs no network"),
        ({"network": "hedd"}, UsageError, "did you mean hed"),
        ({"source": "nowhere"}, MegaSRError, "nowhere"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(small: str, settings: dict, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        DistillationModule(**{"network": "hed", "source": small, **settings})


def test_data_that_degrade_nothing_are_refused() -> None:
    hq, _ = images()
    for batch in ({"hq": hq}, {"hq": hq, "lq": hq}):
        with pytest.raises(UsageError, match=r"data\.degradation"):
            lq_up_of(batch)  # type: ignore[arg-type]
    assert lq_up_of({"hq": hq, "lq": resize(hq, 16, 16)}).shape == hq.shape  # type: ignore[typeddict-item]


def test_a_whole_run_logs_the_errors_before_and_after(small: str, tmp_path: Path) -> None:
    data = WorldDataModule(
        degradation="realesrgan_strong", pool=4, photo_share=0.5, batch_size=2, train_samples=4, crop_size_px=32,
        eval_crop_size_px=64, eval_samples=2,
    )  # fmt: skip
    curve = LossCurve()
    trainer = fit(
        DistillationModule("hed", small), data, 2, callbacks=[curve, Export(str(tmp_path / "out"))],
        default_root_dir=tmp_path, limit_val_batches=1,
    )  # fmt: skip
    assert len(curve.losses) == 2
    for name in ("hed", "depth", "normal", "segmentation"):
        assert trainer.callback_metrics[f"val/{name}_error"] != trainer.callback_metrics[f"val/{name}_error_before"]
    assert load_tiny(str(tmp_path / "out")).config["classes"]


# The losses


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (losses.binary_divergence, (2, 1, 8, 8)), (losses.class_divergence, (2, 5, 8, 8)),
        (losses.relative_depth_loss, (2, 1, 8, 8)),
    ],
)  # fmt: skip
def test_a_loss_is_nothing_for_equal_answers_and_positive_for_others(loss: Any, shape: tuple[int, ...]) -> None:
    teacher = logits(*shape)
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    assert loss(logits(*shape, seed=1), teacher) > 0.1


def test_relative_depth_knows_neither_scale_nor_shift() -> None:
    teacher = logits(2, 1, 8, 8)
    assert losses.relative_depth_loss(3 * teacher + 5, teacher).item() == pytest.approx(0, abs=1e-5)
    assert losses.relative_depth_loss(-teacher, teacher) > 1, "but it knows near from far"
    assert torch.isfinite(losses.relative_depth_loss(torch.zeros(2, 1, 8, 8), teacher))


def test_class_divergence_is_the_divergence_per_pixel() -> None:
    student, teacher = logits(2, 5, 4, 4, seed=1), logits(2, 5, 4, 4)
    p, q = teacher.softmax(1), student.softmax(1)
    assert losses.class_divergence(student, teacher).item() == pytest.approx(
        (p * (p / q).log()).sum(1).mean().item(), rel=1e-5
    )


def test_features_count_in_units_of_their_own() -> None:
    teacher = (torch.ones(1, 4), 100 * torch.ones(1, 4))
    student = (teacher[0] * 1.1, teacher[1] * 1.1)
    assert losses.representation_loss(student, teacher).item() == pytest.approx(0.01, rel=1e-4)


def test_errors_are_in_the_units_they_say() -> None:
    colours = torch.zeros(1, 3, 2, 2)
    other = colours.clone()
    other[0, 1, 0, 0] = 1
    assert answer_error("segmentation", other, colours).item() == 0.25
    assert answer_error("depth", colours + 0.5, colours).item() == 0.5
    half, quarter = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), 0.25)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert answer_error("hed", quarter, half).item() == pytest.approx(expected, rel=1e-5)
    assert answer_error("hed", half, half).item() == 0
    assert answer_error("tokens", torch.zeros(1, 2, 2), torch.ones(1, 2, 2)).item() == 1.0


def test_a_frozen_norm_keeps_its_statistics(tmp_path: Path) -> None:
    """Segformer's decoder has batch norm: fine-tuning must not move its running means."""
    module = DistillationModule("segmentation", str(write_segmentation(tmp_path)), "output").train()
    norms = [part for part in module.student.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    before = [norm.running_mean.clone() for norm in norms]
    learn(module, 1)
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))
