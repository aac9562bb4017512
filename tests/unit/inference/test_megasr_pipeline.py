"""The pipeline's promises: what it takes, what it gives, what it refuses, and what does not depend on what."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.inference.pipeline import MegaSRPipeline, to_tensors
from megasr.networks.config import AdapterConfig
from megasr.training.config import SamplerConfig
from tests.helpers.inference import GUIDANCE, loud_pipeline, photograph
from tests.helpers.training import make_module


@pytest.fixture(scope="module")
def pipeline():
    return loud_pipeline()


@pytest.fixture(scope="module")
def lq():
    return photograph(9, 11)


@pytest.fixture(scope="module")
def sr(pipeline, lq):
    return pipeline(lq, output_type="pt").images


def test_it_is_what_evaluation_restores(pipeline, lq, sr):
    batch = SRBatch(keys=["image"], lq=lq[None], tags=[""])
    assert torch.equal(sr, pipeline.module.restore(batch))
    assert sr.shape == (1, 3, 36, 44) and sr.dtype == torch.float32


def test_every_kind_of_image_is_the_same_image(pipeline, lq):
    array = (lq.numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
    exact = torch.from_numpy(array.transpose(2, 0, 1) / np.float32(255))
    from_tensor = pipeline(exact, output_type="np").images
    for image in (array, Image.fromarray(array), [array], exact[None]):
        assert np.array_equal(pipeline(image, output_type="np").images, from_tensor)
    assert np.array_equal(np.asarray(pipeline(array).images[0]), from_tensor[0])


def test_grey_and_transparent_pictures_become_rgb(pipeline):
    for mode, value in (("L", 90), ("RGBA", (10, 200, 30, 0)), ("1", 1), ("P", 3)):
        image = Image.new(mode, (8, 8), value)
        expected = pipeline(image.convert("RGB"), output_type="np").images
        assert np.array_equal(pipeline(image, output_type="np").images, expected), mode


def test_sixteen_bits_and_turned_pictures_are_what_they_show(pipeline, tmp_path):
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    expected = torch.from_numpy(deep.astype(np.float32) / 65535).expand(3, 8, 8)
    assert torch.equal(to_tensors(Image.fromarray(deep))[0], expected)
    with pytest.raises(UsageError, match="its mode is 'F', whose range is not known"):
        pipeline(Image.new("F", (8, 8)))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for image in (picture, Image.fromarray(deep[:4])):
        image.save(tmp_path / "turned.png", exif=exif)
        upright = image.transpose(Image.Transpose.ROTATE_270)
        assert torch.equal(to_tensors(Image.open(tmp_path / "turned.png"))[0], to_tensors(upright)[0])


def test_mixed_sizes_and_the_batch_do_not_matter(pipeline, lq, sr):
    other, small = photograph(9, 11, seed=1), photograph(8, 8)
    mixed = pipeline([other, small, lq], keys=["b", "c", "image"], output_type="pt")
    assert [tuple(image.shape) for image in mixed.images] == [(3, 36, 44), (3, 32, 32), (3, 36, 44)]
    torch.testing.assert_close(mixed.images[2], sr[0], atol=2e-5, rtol=0)
    assert [tuple(part.shape) for part in mixed.maps["canny"]] == [(1, 36, 44), (1, 32, 32), (1, 36, 44)]


def test_noise_is_keyed_by_seed_and_name(pipeline, lq, sr):
    def restore(**changes):
        return pipeline(lq, output_type="pt", **changes).images

    assert torch.equal(restore(seed=0), sr) and torch.equal(restore(keys=["image"]), sr)
    assert not torch.equal(restore(seed=1), sr) and not torch.equal(restore(keys=["other"]), sr)
    drawn = [restore(generator=torch.Generator().manual_seed(n)) for n in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_strength_0_is_not_showing_1_is_as_trained_and_between_is_between(pipeline, lq, sr):
    def restore(**strengths):
        return pipeline(lq, output_type="pt", guidance=strengths).images

    assert torch.equal(restore(), sr) and torch.equal(restore(canny=1), sr)
    without = make_like(pipeline, shown_guidance=("saliency", "superpixel"))(lq, output_type="pt").images
    assert torch.equal(restore(canny=0), without) and not torch.equal(without, sr)
    half = restore(canny=0.5)
    assert 0 < (half - without).abs().mean() < (sr - without).abs().mean()
    assert set(pipeline(lq, guidance={"canny": 0}).maps) == {"saliency", "superpixel"}


def make_like(pipeline, **sampler):
    return loud_pipeline(sampler=SamplerConfig(num_steps=2, guidance_scale=2.0, **sampler))


def test_other_strengths_of_the_same_image_extract_nothing(pipeline, lq, monkeypatch):
    pipeline(lq)
    calls = []
    monkeypatch.setattr("megasr.guidance.extract._image", lambda *a: calls.append(a))
    pipeline(lq, guidance={"canny": 0.3})
    assert not calls
    with pytest.raises((AttributeError, TypeError)):
        pipeline(photograph(9, 11, seed=5))  # another image does


def test_presets_scales_and_steps(pipeline, lq):
    seen = []

    def watch(pipe, step, timestep, state):
        seen.append((pipe is pipeline, step, timestep, tuple(state["latents"].shape)))

    assert pipeline(lq, num_inference_steps=3, callback_on_step_end=watch).images[0].size == (44, 36)
    assert seen == [(True, 0, 999, (1, 8, 12, 12)), (True, 1, 666, (1, 8, 12, 12)), (True, 2, 332, (1, 8, 12, 12))]
    seen.clear()
    pipeline(photograph(4, 4), preset="fast", guidance_scale=1, callback_on_step_end=watch)
    assert len(seen) == 8
    for scale, size in ((1, (11, 9)), (2.5, (28, 22)), (0.05, (1, 1)), (4.0, (44, 36))):
        assert pipeline(lq, num_inference_steps=1, scale_factor=scale).images[0].size == size


def test_a_callback_may_change_the_latents(pipeline, lq, sr):
    changed = pipeline(
        lq, output_type="pt", callback_on_step_end=lambda p, s, t, k: {"latents": k["latents"] * 0}
    ).images
    assert not torch.equal(changed, sr)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"image": []}, "list is empty"),
        ({"image": "photo.png"}, "expected a PIL image, an array, a tensor or a list of these, got str"),
        ({"image": np.zeros((4, 4), np.uint8)}, r"must be \(h, w, 3\) uint8"),
        ({"image": np.zeros((4, 4, 3))}, "got float64"),
        ({"image": torch.zeros(4, 4)}, "must be float RGB"),
        ({"image": torch.full((3, 4, 4), torch.nan)}, r"must be in \[0, 1\]"),
        ({"image": torch.full((3, 4, 4), 2.0)}, r"must be in \[0, 1\]"),
        ({"image": torch.zeros(3, 0, 4)}, "no pixels"),
        ({"guidance": {"depth": 1}}, "depth: the adapter was trained with canny, saliency, superpixel"),
        ({"guidance": {"canny": -1}}, "from 0 to 2, got -1"),
        ({"guidance": {"canny": float("nan")}}, "got nan"),
        ({"guidance": ["canny"]}, r"strengths by type, such as \{'hed': 0.5\}, got \['canny'\]"),
        ({"guidance": {"canny": None}}, "from 0 to 2, got None"),
        ({"preset": "best"}, "unknown preset 'best'"),
        ({"preset": "fast", "num_inference_steps": 3}, "give one of them"),
        ({"num_inference_steps": 0}, "num_steps must be from 1"),
        ({"color_fix": "adian"}, "unknown color_fix 'adian'; did you mean adain"),
        ({"output_type": "jpg"}, "unknown output_type"),
        ({"scale_factor": 0}, "scale_factor must be above 0"),
        ({"tile": -1}, "tile must be at least 1"),
        ({"tile": 64, "tile_overlap": 40}, "half of the tile"),
        ({"tile": 0, "tile_overlap": 8}, "does nothing without tiles"),
        ({"keys": ["a", "b"]}, "for 1 images"),
        ({"prompt": ["a", "b"]}, "2 for 1 images"),
        ({"seed": 1, "generator": torch.Generator()}, "give one of them"),
    ],
)
def test_bad_input_is_one_clear_error(pipeline, call, message):
    with pytest.raises(UsageError, match=message):
        pipeline(call.pop("image", photograph(4, 4)), **call)


def test_colours_are_fixed_as_trained_unless_asked_otherwise(pipeline, lq, sr):
    fixing = loud_pipeline(sampler=replace(pipeline.module.sampler, color_fix="adain"))
    asked = pipeline(lq, color_fix="adain", output_type="pt").images
    assert torch.equal(fixing(lq, output_type="pt").images, asked) and not torch.equal(asked, sr)
    assert torch.equal(fixing(lq, color_fix="none", output_type="pt").images, sr)


def test_words_for_an_adapter_without_text_and_controls_are_refused(pipeline):
    mute = MegaSRPipeline(make_module(adapter=AdapterConfig(guidance=("canny",), text=False, saft_width=8)))
    with pytest.raises(UsageError, match="without text"):
        mute(photograph(4, 4), prompt="a house")
    with pytest.raises(UsageError, match="guidance_scale=2 would do nothing: the adapter uses no words"):
        mute(photograph(4, 4), guidance_scale=2.0)
    with pytest.raises(UsageError, match="negative_prompt would do nothing: guidance_scale is 1"):
        mute(photograph(4, 4), negative_prompt="blur")
    guided = mute(photograph(4, 4), guidance_scale=2.0, negative_prompt="blur", output_type="pt").images
    assert not torch.equal(guided, mute(photograph(4, 4), output_type="pt").images)
    with pytest.raises(UsageError, match="oracle_canny, which needs hq"):
        MegaSRPipeline(make_module(adapter=AdapterConfig(guidance=("oracle_canny",), saft_width=8)))
    assert pipeline.guidance == GUIDANCE and pipeline.scale_factor == 4


def test_devices_and_dtypes_that_are_not_there(pipeline):
    with pytest.raises(UsageError, match="device 'warp' cannot be used"):
        pipeline.to("warp")
    with pytest.raises(UsageError, match="float32, torch.bfloat16, torch.float16, got torch.int8"):
        pipeline.to(dtype=torch.int8)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="needs a GPU"):
            pipeline.enable_model_cpu_offload()


def test_bfloat16_is_nearly_the_same_and_a_vae_that_overflows_goes_on_in_float32(lq, sr):
    pipeline = loud_pipeline().to(dtype=torch.bfloat16)
    assert pipeline.module.network.unet.unet.dtype == torch.bfloat16
    close = pipeline(lq, output_type="pt").images
    assert close.dtype == torch.float32 and 0 < (close - sr).abs().mean() < 0.05
    decode = pipeline.module.prior.decode
    overflowing = pipeline.module.prior
    overflowing.decode = lambda z: decode(z) * (1 if overflowing.vae.dtype == torch.float32 else torch.nan)
    with pytest.warns(UserWarning, match="VAE overflows in torch.bfloat16") as warned:
        again = pipeline([lq, photograph(8, 8)], output_type="pt", keys=["image", "b"]).images
    assert len([w for w in warned if "VAE" in str(w.message)]) == 1
    assert again[0].isfinite().all() and (again[0] - sr[0]).abs().mean() < 0.05


def test_a_network_that_overflows_is_an_error(pipeline, lq, monkeypatch):
    monkeypatch.setattr(pipeline.module.network, "forward", lambda z, *a: z * torch.nan)
    with pytest.raises(MegaSRError, match="not finite"):
        pipeline(lq)


def test_parts_are_moved_to_the_device_when_they_compute(lq, sr):
    """With the CPU as the device: every part that computes has called its hook before."""
    pipeline = loud_pipeline()
    pipeline.enable_model_cpu_offload("cpu")
    turns = []
    prior, network = pipeline.module.prior, pipeline.module.network
    for name, part in (("text", prior.text_encoder), ("vae", prior.vae), ("network", network)):
        before = part._hf_hook.pre_forward
        part._hf_hook.pre_forward = lambda module, *a, n=name, b=before, **k: (turns.append(n), b(module, *a, **k))[1]
    assert torch.equal(pipeline(lq, output_type="pt").images, sr)
    kept = [name for name, after in zip(turns, [*turns[1:], ""], strict=True) if name != after]
    assert kept == ["text", "network", "text", "network", "vae", "network", "vae"]
