"""Image tokens from an OpenCLIP vision tower, on a small model in open_clip's own format."""

import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.networks.config import AdapterConfig
from megasr.semantics.clip import VisionConfig, VisionEncoder, load_clip, prepare_images
from tests.helpers.towers import random_tower
from tests.helpers.training import make_batch, make_module


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """VisionConfig of a random tiny OpenCLIP model."""
    return random_tower(tmp_path_factory.mktemp("clip"))


def test_tokens_have_one_row_per_patch_and_follow_the_image(tower):
    encoder = VisionEncoder(tower).train()
    image = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    tokens = encoder(image)
    assert tokens.shape == (2, 16, 24) and not encoder.training
    assert not torch.equal(tokens[0], tokens[1])
    assert not any(p.requires_grad for p in encoder.parameters())


def test_the_module_uses_the_encoder_when_the_batch_has_no_tokens(tower):
    batch = make_batch(1)
    del batch["image_tokens"]
    adapter = AdapterConfig(image=True, image_width=24)
    module = make_module(adapter=adapter, vision=tower).eval()
    assert module.restore(batch).shape == (1, 3, 32, 32)
    with pytest.raises(UsageError, match="image tokens"):
        make_module(adapter=adapter).eval().restore(batch)


def test_the_shipped_tower_gives_the_tokens_of_its_clip():
    encoder = VisionEncoder(VisionConfig(model="tiny"))
    image = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    tokens = encoder(image)
    assert tokens.shape == (2, 64, 128)
    clip = load_clip("tiny")
    pooled = encoder.visual(prepare_images(encoder.visual, image))
    torch.testing.assert_close(torch.nn.functional.normalize(pooled, dim=-1), clip.encode_images(image))


def test_the_tower_gives_v1s_representation(tower):
    batch = make_batch(1)
    del batch["representation"]
    adapter = AdapterConfig(rca=True, representation_width=24)
    module = make_module(adapter=adapter, vision=tower).eval()
    assert torch.equal(module.semantics(batch, batch["hq"], [""]).representation, module.vision(batch["hq"]))
    assert module.restore(batch).shape == (1, 3, 32, 32)


def test_a_model_with_its_own_weights_takes_no_others(tmp_path):
    with pytest.raises(UsageError, match="'tiny' brings its own weights"):
        VisionConfig(weights="x", model="tiny")
    with pytest.raises(UsageError, match="name the checkpoint of ViT-H-14"):
        VisionConfig()
    with pytest.raises(MegaSRError, match="lacks open_clip_config.json"):
        VisionEncoder(VisionConfig(model=str(tmp_path)))


def test_missing_weights_and_unknown_models(tmp_path, tower):
    with pytest.raises(MegaSRError, match="none.pt"):
        VisionEncoder(VisionConfig(weights=str(tmp_path / "none.pt"), model=tower.model))
    with pytest.raises(UsageError, match="did you mean ViT-H-14"):
        VisionEncoder(VisionConfig(weights="x", model="ViT-H14"))
