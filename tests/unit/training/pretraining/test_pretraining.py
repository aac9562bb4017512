"""What makes the tiny prior: it trains, resumes, exports what others load, and every setting does something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from data_pipelines.embedded import WorldDataModule
from data_pipelines.encoded import LatentDataModule, write_latents
from experiments.world.encode import encode
from megasr.diffusion import Flow
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.protocol import LPIPS
from megasr.files import identify_folder
from megasr.images import from_uint8, to_signed
from megasr.pretraining.autoencoder import (
    AutoencoderModule,
    build_autoencoder,
    standardise_latents,
    start_from_components,
    weigh_latents,
)
from megasr.pretraining.clip import ClipModule, draw_phrases, spans, truth
from megasr.pretraining.module import Export, PretrainingModule
from megasr.pretraining.text_to_image import MMDiTModule, UNetModule
from megasr.prior import load_autoencoder, load_prior
from megasr.rng import numpy_generator
from megasr.semantics.clip import load_clip
from tests.helpers.metric_weights import write_metric_weights
from tests.helpers.training import LossCurve, fit

VAE = {"latent_channels": 12, "width": 28, "encoder_layers": (1, 1), "decoder_layers": (1, 1)}


def world(**changes: Any) -> WorldDataModule:
    """A few scenes."""
    settings = {"scale_factor": 1, "degradation": "none", "pool": 6, "patches": 8, "batch_size": 2, "train_samples": 64}
    return WorldDataModule(**{**settings, "crop_size_px": 32, "eval_crop_size_px": 64, "eval_samples": 2, **changes})


def train(module: PretrainingModule, folder: Path, steps: int = 2, patches: int = 8) -> list[float]:
    """Losses of a training whose export lies in `folder` afterwards."""
    curve = LossCurve()
    fit(module, world(patches=patches), steps, callbacks=[curve, Export(str(folder))], default_root_dir=folder.parent)
    return curve.losses


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder, a CLIP and a prior on both, trained for two steps each."""
    folder = tmp_path_factory.mktemp("made")
    train(AutoencoderModule(**VAE), folder / "vae")
    train(ClipModule(words=("brick",), width=32, layers=1, text_layers=1, merges=20), folder / "clip")
    train(small_prior(folder), folder / "prior")
    return folder


def small_prior(folder: Path, **changes: Any) -> UNetModule:
    sizes = {"channels": (16, 32), "heads": (1, 1)}
    return UNetModule(str(folder / "vae"), str(folder / "clip"), **{**sizes, **changes})


def small_mmdit(folder: Path, **changes: Any) -> MMDiTModule:
    sizes = {"width": 16, "heads": 2, "layers": 2}
    return MMDiTModule(str(folder / "vae"), str(folder / "clip"), **{**sizes, **changes})


@pytest.mark.parametrize(("layers", "numbers"), [((1, 1), (4, 12, 48)), ((1, 1, 0), (16, 64, 192))])
def test_the_autoencoder_starts_at_the_linear_optimum(layers: tuple[int, ...], numbers: tuple[int, ...]) -> None:
    data, factor = world(photo_share=0.0), 2 ** len(layers)
    images = torch.stack([to_signed(torch.from_numpy(data.train_sample(i).hq.copy()).permute(2, 0, 1) / 255)
                          for i in range(12)])  # fmt: skip
    found = []
    for channels in numbers:
        vae = build_autoencoder(channels, 28, layers, layers)
        start_from_components(vae, images, whitening=0.5)
        with torch.no_grad():
            z = vae.encode(images).latent
            error = (vae.decode(z).sample - images).square().mean()
        assert z.shape == (12, channels, 32 // factor, 32 // factor)
        found.append(float(error / images.var()))
    values = 3 * factor**2
    patches = torch.nn.functional.pixel_unshuffle(images, factor).movedim(1, -1).reshape(-1, values)
    variances = torch.linalg.eigvalsh(torch.cov(patches.T)).flip(0)
    for channels, share in zip(numbers, found, strict=True):
        best = float(variances[channels:].sum() / values / images.var())
        # The decoder's norm bends its path by a thousandth of the variance.
        assert share == pytest.approx(best, rel=0.03, abs=1.5e-3)


def test_standard_latents_decode_to_the_same_picture() -> None:
    vae = build_autoencoder(12, 28, (1, 1), (1, 1))
    images = to_signed(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    start_from_components(vae, images, whitening=0.5)
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent).sample
        standardise_latents(vae, images)
        z = vae.encode(images).latent
        torch.testing.assert_close(vae.decode(z).sample, before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(12), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_latent_channel_is_as_strong_as_what_it_does_to_the_picture(power: float) -> None:
    vae = build_autoencoder(12, 28, (1, 1), (1, 1))
    images = to_signed(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    images[:, 0] *= 0.2
    start_from_components(vae, images, whitening=1.0)
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent).sample
        weigh_latents(vae, images, power)
        z = vae.encode(images).latent
        torch.testing.assert_close(vae.decode(z).sample, before, rtol=1e-3, atol=1e-4)
        deviations = z.std((0, 2, 3))
        noise = torch.zeros(12, *z.shape)
        for channel in range(12):
            noise[channel, :, channel] = 0.1 * deviations[channel] * torch.randn(z[:, channel].shape)
        done = torch.stack([(vae.decode(z + n).sample - before).square().mean().sqrt() for n in noise])
    assert deviations.square().mean() == pytest.approx(1, rel=1e-3)
    # Noise is drawn, and the decoder is not quite linear.
    expected = done**power / (done**power).square().mean().sqrt()
    torch.testing.assert_close(deviations, expected, rtol=0.1, atol=0)


def test_lpips_is_a_part_of_the_loss_and_of_no_checkpoint(tmp_path: Path) -> None:
    write_metric_weights(tmp_path / "weights", set(LPIPS.weights))
    module = AutoencoderModule(**VAE, lpips_weight=1.0, weights_dir=str(tmp_path / "weights"))
    assert {name.split(".")[0] for name in module.state_dict()} == {"vae"}
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = {"hq": image, "keys": ["a"], "tags": [""]}
    module.log = lambda *unused, **settings: None  # type: ignore[method-assign]
    with_lpips = module.training_step(batch, 0)
    module.lpips_weight = 0.0
    assert with_lpips > module.training_step(batch, 0)
    with_lpips.backward()
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"vae"}


def test_the_exported_latents_are_weighed_as_is_said(made: Path, tmp_path: Path) -> None:
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    spread = []
    for power in (0.0, 1.0):
        module = AutoencoderModule(**VAE, init=str(made / "vae"), latent_power=power)
        module.samples = lambda count: images  # type: ignore[method-assign]
        module.export(tmp_path / str(power))
        with torch.no_grad():
            z = load_autoencoder(tmp_path / str(power)).encode(to_signed(images)).latent
        spread.append(float(z.std((0, 2, 3)).std()))
    assert spread[0] < 1e-3 < 1e-2 < spread[1]


def test_a_locked_encoder_keeps_its_latents(made: Path, tmp_path: Path) -> None:
    module = AutoencoderModule(**VAE, init=str(made / "vae"), lock_encoder=True, learning_rate=1e-2, latent_power=1.0)
    train(module, tmp_path / "locked", 2)
    before, after = load_autoencoder(made / "vae"), load_autoencoder(tmp_path / "locked")
    image = to_signed(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        z = before.encode(image).latent
        assert torch.equal(after.encode(image).latent, z)
        assert not torch.equal(after.decode(z).sample, before.decode(z).sample)
    with pytest.raises(UsageError, match=r"model.lock_encoder: .* give model.init"):
        AutoencoderModule(**VAE, lock_encoder=True)


def test_an_autoencoder_goes_on_from_an_exported_one(made: Path, tmp_path: Path) -> None:
    exported, going_on = load_autoencoder(made / "vae"), AutoencoderModule(**VAE, init=str(made / "vae"))
    assert all(torch.equal(exported.state_dict()[n], value) for n, value in going_on.vae.state_dict().items())
    # Training does not put the components back in their place.
    still = AutoencoderModule(**VAE, init=str(made / "vae"), learning_rate=1e-9)
    train(still, tmp_path / "again", 1)
    for name, value in exported.state_dict().items():
        torch.testing.assert_close(still.vae.state_dict()[name], value, rtol=0, atol=1e-6)
    with pytest.raises(MegaSRError, match="is no autoencoder of these sizes"):
        AutoencoderModule(**VAE | {"width": 32}, init=str(made / "vae"))


def test_an_autoencoder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"encoder_layers \(1, 1\), decoder_layers \(1,\): make f the same"):
        AutoencoderModule(**VAE | {"decoder_layers": (1,)})
    with pytest.raises(MegaSRError, match=r"lpips \(alex\) lacks alexnet-owt-7be5be79.pth \(https"):
        AutoencoderModule(**VAE, lpips_weight=0.1, weights_dir=str(tmp_path))


def test_the_unet_trains_on_encoded_latents_as_on_pictures(made: Path, tmp_path: Path) -> None:
    data, vae = world(), load_autoencoder(made / "vae")
    splits = {"train": encode(data.train_sample, 6, vae), "eval": encode(data.eval_sample, 2, vae)}
    write_latents(tmp_path / "latents", splits, {"fingerprint": "six", "vae": identify_folder(made / "vae")})
    encoded = LatentDataModule(str(tmp_path / "latents"), batch_size=2, train_samples=64)
    batch = next(iter(encoded.train_dataloader()))
    assert batch["latents"].shape == (2, 12, 8, 8)
    by_workers = torch.cat([z for z, _ in encode(data.train_sample, 6, vae, workers=2)])
    np.testing.assert_array_equal(by_workers.half().numpy(), encoded.arrays["train"])
    assert batch["hq"].shape == (2, 3, 0, 0)
    curve = LossCurve()
    fit(small_prior(made), encoded, 3, callbacks=[curve], default_root_dir=tmp_path)
    assert len(set(curve.losses)) == 3
    (tmp_path / "latents/card.json").write_text(json.dumps({"fingerprint": "six", "vae": "another"}))
    stale = LatentDataModule(str(tmp_path / "latents"), batch_size=2, train_samples=64)
    with pytest.raises(UsageError, match="data.folder was encoded by the autoencoder another, model.vae is"):
        fit(small_prior(made), stale, 1, default_root_dir=tmp_path)
    module = small_prior(made)
    pictures = {"hq": torch.stack([from_uint8(data.train_sample(i).hq) for i in range(2)])}
    z = torch.from_numpy(np.load(tmp_path / "latents/train.npy")[:2]).float()
    torch.testing.assert_close(module._latents({"latents": z}), module._latents(pictures), atol=2e-2, rtol=2e-2)


def test_a_u_net_goes_on_from_a_trained_one(made: Path) -> None:
    trained = small_prior(made, init=str(made / "prior" / "unet")).prior.unet.state_dict()
    kept = load_prior(str(made / "prior")).unet.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in kept.items())
    with pytest.raises(MegaSRError, match="is no UNet2DConditionModel of these sizes"):
        small_prior(made, init=str(made / "prior" / "unet"), channels=(16, 48))
    with pytest.raises(MegaSRError, match=r"model.init .*nowhere is no UNet2D"):
        small_prior(made, init=str(made / "nowhere"))


def test_latents_are_encoded_at_the_scale_of_the_prior(made: Path) -> None:
    data, vae = world(), load_autoencoder(made / "vae")
    plain, _ = next(encode(data.train_sample, 2, vae))
    vae.register_to_config(scaling_factor=0.5)
    scaled, _ = next(encode(data.train_sample, 2, vae))
    torch.testing.assert_close(scaled, plain / 2)


def test_what_was_made_loads_again(made: Path) -> None:
    vae, clip, prior = load_autoencoder(made / "vae"), load_clip(str(made / "clip")), load_prior(str(made / "prior"))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = vae.encode(to_signed(images)).latent * vae.config.scaling_factor
        assert torch.equal(z, prior.encode(images))  # the frozen autoencoder went into the prior as it was
        assert prior.decode(z).shape == images.shape
        words = ["brick wall", ""]
        assert prior.text_encoder(words).shape == (2, 32, 64)
        hidden = clip.model.ln_final(_hidden(clip.model, words))
    torch.testing.assert_close(prior.text_encoder(words), hidden)  # the text tower is the CLIP's
    probabilities = clip.probabilities(images, ["brick", "grass", "wooden floor"])
    assert probabilities.shape == (2, 3)
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_an_mmdit_loads_as_the_prior_that_was_trained(made: Path, tmp_path: Path) -> None:
    module = small_mmdit(made, learning_rate=1e-2)
    train(module, tmp_path / "prior", 3)
    prior, words = load_prior(str(tmp_path / "prior")), ["brick wall", ""]
    text = prior.text_encoder(words)
    tokens = prior.text_encoder.tokenise(words)
    ends = [int((row == prior.text_encoder.tokenizer.eot_token_id).nonzero()) for row in tokens]
    assert torch.equal(text.pooled, text.states[[0, 1], ends])
    torch.testing.assert_close(text.states, load_prior(str(made / "prior")).text_encoder(words))
    z = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, trained = (p.predict(z, torch.tensor([100, 900]), text) for p in (prior, module.prior))
        assert not torch.allclose(prior.predict(z, torch.tensor([100, 900]), prior.text_encoder(["", ""])), found)
    torch.testing.assert_close(found, trained, rtol=1e-2, atol=1e-3)  # exported as float16
    assert isinstance(prior.schedule, Flow)


def test_an_untrained_mmdit_predicts_nothing(made: Path) -> None:
    prior = small_mmdit(made).prior
    with torch.no_grad():
        found = prior.predict(torch.ones(1, 12, 8, 8), torch.tensor([500]), prior.text_encoder(["brick"]))
    assert not found.any()


def _hidden(model: Any, texts: list[str]) -> torch.Tensor:
    tokens = model.tokenizer(texts)
    x = model.token_embedding(tokens) + model.positional_embedding
    return model.transformer(x, attn_mask=model.attn_mask)


def test_resumed_training_is_the_same(tmp_path: Path) -> None:
    def run(**resume: Any) -> list[float]:
        curve, saved = LossCurve(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
        module = AutoencoderModule(**VAE)
        trainer = lightning.Trainer(
            max_steps=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, callbacks=[curve, saved],
        )  # fmt: skip
        trainer.fit(module, datamodule=world(), **resume)
        return curve.losses

    whole = run()
    assert run(ckpt_path=tmp_path / "step=2.ckpt") == whole[2:]


TAG = "red brick wall"


def test_labels_are_exact() -> None:
    assert spans(TAG) == ["red", "red brick", "red brick wall", "brick", "brick wall", "wall"]
    texts = ["brick", "red wall", "brick wall, grass", "grass ground, red brick", "wooden"]
    tags = [f"{TAG}, grass ground", TAG, "wooden floor"]
    expected = [[1, 0, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert truth(texts, tags).tolist() == expected


def test_drawn_phrases_are_true_of_some_image() -> None:
    tags = [f"{TAG}, grass ground", "clear blue sky, wooden fence"]
    every = draw_phrases(tags, 100, numpy_generator(0))
    assert len(set(every)) == len(every) == 6 + 3 + 6 + 3
    assert truth(every, tags).any(0).all()
    assert len(draw_phrases(tags, 4, numpy_generator(0))) == 4
    assert draw_phrases(tags, 4, numpy_generator(0)) != draw_phrases(tags, 4, numpy_generator(1))


CLIP = {"width": 32, "layers": 1, "text_layers": 1, "merges": 20}
CHANGES = [
    *((AutoencoderModule, VAE, name, value) for name, value in {
        "latent_channels": 6, "width": 32, "encoder_layers": (1, 2), "decoder_layers": (2, 1), "whitening": 0.0,
        "latent_noise": 0.5, "gradient_weight": 3.0, "learning_rate": 1e-2, "weight_decay": 5.0, "seed": 1,
        "schedule": "trapezoid",
    }.items()),
    *((ClipModule, CLIP, name, value) for name, value in {
        "words": ("astronaut",), "width": 64, "layers": 2, "patch_size": 32, "image_size": 64, "embed_dim": 32,
        "text_width": 32, "text_layers": 2, "context_length": 16, "merges": 40, "phrases": 2, "patch_weight": 0.0,
        "lock_text": True, "learning_rate": 1e-2, "weight_decay": 5.0, "seed": 1, "schedule": "trapezoid",
    }.items()),
    *((small_prior, {}, name, value) for name, value in {
        "channels": (16, 48), "heads": (2, 2), "layers": 2, "text_dropout": 1.0, "learning_rate": 1e-2,
        "weight_decay": 5.0, "seed": 1, "schedule": "trapezoid",
    }.items()),
    *((small_mmdit, {}, name, value) for name, value in {
        "width": 24, "heads": 1, "layers": 1, "patch_size": 2, "shift": 3.0, "text_dropout": 1.0,
        "learning_rate": 1e-2, "weight_decay": 5.0, "seed": 1, "schedule": "trapezoid",
    }.items()),
]  # fmt: skip


UNCHANGED: dict[Any, list[float]] = {}  # losses of the default settings


@pytest.mark.parametrize(("build", "base", "name", "value"), CHANGES, ids=lambda x: x if isinstance(x, str) else "")
def test_every_setting_has_an_effect(build: Any, base: dict, name: str, value: Any, made: Path, tmp_path: Path) -> None:
    first = (made,) if build in (small_prior, small_mmdit) else ()
    patches = 0 if name in ("image_size", "patch_size") else 8  # another number of patches than the data's is refused
    steps = 5 if build is small_mmdit else 3  # its blocks begin as the identity
    if (build, patches) not in UNCHANGED:
        UNCHANGED[build, patches] = train(build(*first, **base), tmp_path / "export", steps, patches)
    changed = train(build(*first, **base | {name: value}), tmp_path / "export", steps, patches)
    assert changed != UNCHANGED[build, patches]


def test_patches_that_the_data_do_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data.patches gives 16 tags per image, the vision tower has 64 patches"):
        train(ClipModule(**CLIP), tmp_path / "export", patches=4)


def test_only_training_is_compiled(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiled(function: Any, **options: Any) -> Any:
        return lambda *inputs: calls.append(inputs[0].shape) or function(*inputs)

    monkeypatch.setattr(torch, "compile", compiled)  # the real one takes minutes
    eager = train(small_prior(made), tmp_path / "eager", 3)
    assert not calls
    assert train(small_prior(made, compile=True), tmp_path / "compiled", 3) == eager
    assert calls == [(2, 12, 8, 8)] * 3  # not the validation's larger crops
    exported = [load_prior(str(tmp_path / name)).unet.state_dict() for name in ("eager", "compiled")]
    assert exported[0].keys() == exported[1].keys()


def test_a_locked_text_tower_stays(made: Path, tmp_path: Path) -> None:
    sizes = {"words": ("brick",), "width": 32, "layers": 1, "text_layers": 1, "merges": 20}
    train(ClipModule(init=str(made / "clip"), lock_text=True, learning_rate=1e-2, **sizes), tmp_path / "clip")
    before, after = load_clip(str(made / "clip")).state_dict(), load_clip(str(tmp_path / "clip")).state_dict()
    moved = {name.removeprefix("model.").split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"visual", "text_projection", "logit_scale", "logit_bias"}


def test_only_the_unet_is_trained(made: Path) -> None:
    module = small_prior(made)
    trained = {name.split(".")[1] for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {"unet"}
