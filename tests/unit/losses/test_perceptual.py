"""Perceptual losses: the metrics' numbers, gradients everywhere, float32, and no trace in whoever holds them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.metrics import found_weights
from megasr.evaluation.protocol import PROTOCOLS
from megasr.images import from_uint8, quantise, read_image
from megasr.losses.adversarial import GAN
from megasr.losses.perceptual import DISTS, LPIPS, VGG16_LAYERS, LPIPSOnVGG16, VGG16Features, load_perceptual
from megasr.losses.terms import ComparedFeatures, Estimate
from megasr.rng import torch_generator
from tests.helpers.metric_weights import write_metric_weights
from tests.helpers.shared import shared

FILES = {
    "lpips-alex": ("alexnet-owt-7be5be79.pth", "LPIPS_v0.1_alex-df73285e.pth"),
    "lpips-vgg": ("vgg16-397923af.pth", "LPIPS_v0.1_vgg-a78928a0.pth"),
    "dists": ("vgg16-397923af.pth", "DISTS_weights-f5e65c96.pth"),
    "vgg16": ("vgg16-397923af.pth",),
}
CREATE: dict[str, Callable[[Path], nn.Module]] = {
    "lpips-alex": LPIPS,
    "lpips-vgg": lambda folder: LPIPSOnVGG16(VGG16Features(weights_dir=folder), folder),
    "dists": DISTS,
    "vgg16": lambda folder: VGG16Features(weights_dir=folder),
}
DISTANCES = ["lpips-alex", "lpips-vgg", "dists"]


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_metric_weights(folder, {name for names in FILES.values() for name in names})
    return folder


@pytest.fixture(scope="module", params=DISTANCES)
def distance(request: pytest.FixtureRequest, weights_dir: Path) -> nn.Module:
    return CREATE[request.param](weights_dir)


def _images(count: int = 2, size_px: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    hq, noise = torch.rand(2, count, 3, size_px, size_px, generator=torch_generator(0, "perceptual"))
    return hq + 0.2 * (noise - 0.5), hq


def test_one_distance_per_image_zero_for_equal_ones(distance: nn.Module) -> None:
    sr, hq = _images()
    found = distance(sr, hq)
    assert found.shape == (2,) and (found > 1e-4).all()
    assert distance(hq, hq).abs().max() < 1e-6
    torch.testing.assert_close(distance(sr[:1], hq[:1]), found[:1], rtol=1e-4, atol=1e-6)


def test_the_gradient_reaches_pixels_beyond_the_range(distance: nn.Module) -> None:
    sr, hq = _images(1)
    sr = (2 * sr - 0.5).requires_grad_()
    distance(sr, hq).sum().backward()
    assert sr.grad is not None and sr.grad.isfinite().all()
    for outside in (sr < 0, sr > 1):
        assert outside.sum() > 100 and (sr.grad[outside] != 0).double().mean() > 0.99


def test_flat_images_have_finite_gradients(distance: nn.Module) -> None:
    sr = torch.zeros(1, 3, 64, 64, requires_grad=True)
    distance(sr, torch.ones(1, 3, 64, 64)).sum().backward()
    assert sr.grad is not None and sr.grad.isfinite().all() and sr.grad.abs().max() > 0


def test_autocast_changes_nothing(distance: nn.Module) -> None:
    sr, hq = _images(1)
    outside = distance(sr, hq)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distance(sr, hq)
        assert torch.nn.functional.conv2d(hq, torch.ones(1, 3, 3, 3)).dtype == torch.bfloat16
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)
    assert torch.equal(distance(sr.bfloat16(), hq.bfloat16()), distance(sr.bfloat16().float(), hq.bfloat16().float()))


def test_its_owner_neither_trains_nor_stores_nor_casts_it(distance: nn.Module) -> None:
    """LPIPS's head has dropout, which `train()` would switch on."""
    sr, hq = _images(1)
    before = distance(sr, hq)
    owner = nn.ModuleDict({"loss": distance}).train().to(torch.bfloat16)
    assert not owner.state_dict() and not list(owner.parameters())
    assert torch.equal(owner["loss"](sr, hq), before)


@pytest.mark.parametrize("name", FILES)
def test_missing_weights_are_one_error_that_names_them_and_their_source(
    name: str, weights_dir: Path, tmp_path: Path
) -> None:
    for missing in FILES[name]:
        for file in set(FILES[name]) - {missing}:
            (tmp_path / file).symlink_to(weights_dir / file)
        with pytest.raises(MegaSRError, match=rf" lacks {missing} \(https://.*Put the files into one folder") as found:
            CREATE[name](tmp_path)
        assert len(str(found.value).splitlines()) == 1
        (tmp_path / missing).write_bytes((weights_dir / missing).read_bytes()[:1000])
        with pytest.raises(MegaSRError, match=rf"its weights \(.*{missing}.*\) cannot be loaded"):
            CREATE[name](tmp_path)
        for link in tmp_path.iterdir():
            link.unlink()


def test_feature_maps_are_torchvisions(weights_dir: Path) -> None:
    from torchvision.models import vgg16

    image = _images(1)[1]
    with torch.device("meta"):
        network = vgg16()
    network = network.features.to_empty(device="cpu")
    state = torch.load(weights_dir / "vgg16-397923af.pth", weights_only=True)
    network.load_state_dict({n.removeprefix("features."): v for n, v in state.items() if n.startswith("features.")})
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    layers = ("relu5_3", "relu1_1", "relu3_2")
    found = VGG16Features(layers, weights_dir)(image)
    assert [tuple(map_.shape[1:]) for map_ in found] == [(512, 4, 4), (64, 64, 64), (256, 16, 16)]
    with torch.no_grad():
        for layer, place, map_ in zip(layers, (29, 1, 13), found, strict=True):
            torch.testing.assert_close(map_, network[: place + 1]((image - mean) / std), msg=layer)
    assert [type(network[place]).__name__ for place in VGG16_LAYERS.values()] == ["ReLU"] * 13


@pytest.mark.parametrize("name", ["vgg16", "tiny"])
def test_feature_maps_carry_the_gradient_and_say_their_channels(name: str, weights_dir: Path) -> None:
    image = (2 * _images(1)[1] - 0.5).requires_grad_()
    features = load_perceptual(name, str(weights_dir))
    maps = features(image)
    assert tuple(map_.shape[1] for map_ in maps) == features.channels and len(maps) > 3
    sum(map_.square().mean() for map_ in maps).backward()
    assert image.grad is not None and (image.grad != 0).double().mean() > 0.99


def test_tiny_features_are_those_of_the_shipped_tower() -> None:
    from megasr.semantics.clip import load_open_clip, prepare_images

    image, visual = _images(1, 128)[1], load_open_clip("tiny").visual
    outputs = visual.forward_intermediates(prepare_images(visual, image), intermediates_only=True)
    for found, expected in zip(load_perceptual("tiny")(image), outputs["image_intermediates"], strict=True):
        torch.testing.assert_close(found, expected)


def test_configs_name_them(weights_dir: Path) -> None:
    kinds = {"lpips_alex": LPIPS, "lpips_vgg": LPIPSOnVGG16, "dists": DISTS, "vgg16": VGG16Features}
    for name, kind in kinds.items():
        assert isinstance(load_perceptual(name, str(weights_dir)), kind)
    assert load_perceptual("lpips_vgg", str(weights_dir)).features is load_perceptual("vgg16", str(weights_dir))
    with pytest.raises(MegaSRError, match="features vgg19: its weights are not in the local cache; take vgg16 or tiny"):
        load_perceptual("vgg19")


def test_unknown_names_are_refused(weights_dir: Path) -> None:
    with pytest.raises(UsageError, match="unknown layer of VGG16 'relu3_4'"):
        VGG16Features(["relu3_4"], weights_dir)


@pytest.mark.parametrize("name", ["lpips-alex", "dists"])
def test_losses_are_the_metrics(name: str, weights_dir: Path) -> None:
    sr, hq = (quantise(image) for image in _images(1))
    metric = name.removesuffix("-alex")
    evaluator = Evaluator(PROTOCOLS["whole-image-v1"], metrics=[metric], weights_dir=weights_dir)
    expected = evaluator.rows(sr, hq, ["a"])[0][metric]
    assert CREATE[name](weights_dir)(sr, hq).item() == pytest.approx(expected, rel=1e-4)


def test_lpips_on_shared_features_is_pyiqas(weights_dir: Path) -> None:
    from pyiqa.archs import lpips_arch

    sr, hq = _images()
    with found_weights(["vgg16-397923af.pth", "LPIPS_v0.1_vgg-a78928a0.pth"], weights_dir):
        expected = lpips_arch.LPIPS(net="vgg")(sr, hq).flatten()
    torch.testing.assert_close(CREATE["lpips-vgg"](weights_dir)(sr, hq), expected, rtol=1e-5, atol=1e-7)


def test_lpips_and_a_discriminator_look_once(weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, measure = [], VGG16Features._measure
    monkeypatch.setattr(
        VGG16Features, "_measure", lambda self, *given: (images.append(given[-1]), measure(self, *given))[1]
    )
    lpips, vgg16 = (load_perceptual(name, str(weights_dir)) for name in ("lpips_vgg", "vgg16"))
    sr, hq = _images()
    estimate = Estimate(None, {"keys": ["a", "b"], "hq": hq}, sr, None, ["", ""], 0, 0)  # type: ignore[arg-type]
    estimate.sr = sr.requires_grad_()
    gan = GAN(vgg16, 0)
    losses = ComparedFeatures(lpips)(estimate), gan(estimate), gan.critic_loss(estimate)
    assert len(images) == 2
    torch.testing.assert_close(losses[0], lpips(sr, hq))
    torch.stack(losses).sum().backward()
    assert sr.grad is not None and sr.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "metric"), [("lpips-alex", "lpips"), ("dists", "dists")])
def test_published_weights_give_published_scores(name: str, metric: str) -> None:
    """OSEDiff's published scores of a DRealSR crop."""
    data, weights = shared("data", "drealsr"), shared("weights", "lpips")
    with (data / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    sr, hq = (from_uint8(read_image(data / folder / row["image"]))[None] for folder in ("osediff_sr", "hq"))
    with torch.no_grad():
        assert CREATE[name](weights)(sr, hq).item() == pytest.approx(float(row[metric]), abs=5e-4)


def test_features_of_timm_come_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "test_convnext.r160_in1k"
    published = timm.create_model(name)
    folder = tmp_path / f"models--timm--{name}"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    save_file(published.state_dict(), folder / "snapshots" / "0" / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    features, image = load_perceptual(name), (3 * torch.rand(2, 3, 64, 64) - 1).requires_grad_()
    levels = features(image)
    assert tuple(level.shape[1] for level in levels) == features.channels
    (gradient,) = torch.autograd.grad(levels[-1].square().sum(), image)
    assert gradient.abs().sum() > 0
    plain = timm.create_model(name, features_only=True)
    plain.load_state_dict(features._network[0].state_dict())
    cfg = published.pretrained_cfg
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(levels, plain.eval()((image - mean) / std))
    weight = "stem.0.weight"
    assert torch.equal(features._network[0].state_dict()["stem_0.weight"], published.state_dict()[weight])
