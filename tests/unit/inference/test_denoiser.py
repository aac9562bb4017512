"""What is made once per image against what is made anew in every step, for every half of guidance and every tile."""

import pytest
import torch

from megasr.diffusion import guided
from megasr.inference.tiling import Grid, Guidance, TiledDenoiser, Tiling
from megasr.networks.network import MegaSRNetwork
from tests.helpers.inference import move_weights
from tests.helpers.networks import adapter, random_inputs, random_prior

SCALE = 3.0


@pytest.fixture(scope="module")
def scene():
    prior = random_prior()
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(guidance=("canny", "depth", "segmentation"), image=True, rca=True)).eval()
    move_weights(network)
    with torch.no_grad():
        negative = inputs["semantics"]._replace(text=prior.text_encoder(["blur"] * 2))
    return network, inputs, negative


@torch.no_grad()
def build(scene, grid=None, interval=None, shown=None):
    network, inputs, negative = scene
    whole = Grid.whole(*inputs["lq_up"].shape[-2:])
    latents = inputs["z_t"].shape[-2:]
    shown = shown or [(1.0, network.saft_maps(inputs["maps"], *latents))]
    guidance = Guidance(network.read(negative), SCALE, interval, 1000)
    known = network.read(inputs["semantics"])
    return TiledDenoiser(network, inputs["lq_up"], known, shown, grid or whole, guidance)


@torch.no_grad()
def uncached(scene, t, is_guided=True):
    """Two passes, each of which makes its conditions."""
    network, inputs, negative = scene
    timesteps = torch.full((2,), t)

    def predict(semantics):
        return network(inputs["z_t"], timesteps, network.conditions(inputs["lq_up"], semantics, inputs["maps"]))

    positive = predict(inputs["semantics"])
    return guided(positive, predict(negative), SCALE) if is_guided else positive


def step(denoiser, scene, t):
    with torch.no_grad():
        return denoiser(scene[1]["z_t"], torch.full((2,), t))


def test_cached_steps_in_one_batch_equal_uncached_steps_one_by_one(scene):
    denoiser = build(scene)
    for t in (900, 300, 300):
        expected = uncached(scene, t)
        torch.testing.assert_close(step(denoiser, scene, t), expected, atol=2e-5 * expected.abs().max(), rtol=0)


def test_conditions_are_made_in_the_first_step_only(scene, monkeypatch):
    denoiser, made = build(scene), []
    guide = scene[0].guide
    monkeypatch.setattr(scene[0], "guide", lambda *a: (made.append(1), guide(*a))[1])
    for t in (900, 600, 300):
        step(denoiser, scene, t)
    assert len(made) == 1


def test_guidance_in_an_interval_skips_the_second_half_outside(scene, monkeypatch):
    denoiser, sizes = build(scene, interval=(0.2, 0.5)), []
    forward = scene[0].forward
    monkeypatch.setattr(scene[0], "forward", lambda z, *a: (sizes.append(len(z)), forward(z, *a))[1])
    found = {t: step(denoiser, scene, t) for t in (800, 400, 100)}
    assert sizes == [2, 4, 2]
    for t, is_guided in ((800, False), (400, True), (100, False)):
        expected = uncached(scene, t, is_guided)
        torch.testing.assert_close(found[t], expected, atol=2e-5 * expected.abs().max(), rtol=0)


def test_a_tile_has_the_scale_and_shift_of_the_whole_image(scene):
    """Stage 1 looks at the whole image: its attention is no tile's own."""
    network = scene[0]
    whole, tiled = build(scene), build(scene, Tiling(16, 8).grid(32, 32, 16))
    with torch.no_grad():
        of_image = whole._conditions([(0, 0)], None)
        of_tile = tiled._conditions([(1, 1)], None)
    sites = [*network.unet.sites, *network.controlnet.sites]
    both = zip([*of_image.unet, *of_image.controlnet], [*of_tile.unet, *of_tile.controlnet], sites, strict=True)
    for image, tile, site in both:
        start = tiled.latents.rows.starts[1] >> site.level
        for whole_part, part in zip(image.modulation, tile.modulation, strict=True):
            cut = whole_part[..., start : start + part.shape[-2], start : start + part.shape[-1]]
            torch.testing.assert_close(part, cut, atol=1e-5, rtol=1e-5)


def test_of_many_tiles_a_few_are_kept_and_the_rest_made_again_with_the_same_result(scene, monkeypatch):
    grid = Tiling(16, 8, batch=1).grid(32, 32, 16)
    kept = build(scene, grid)
    expected = [step(kept, scene, t) for t in (900, 300)]
    monkeypatch.setattr("megasr.inference.tiling.GROUPS_KEPT", 1)
    few = build(scene, grid)
    assert all(torch.equal(step(few, scene, t), e) for t, e in zip((900, 300), expected, strict=True))
    assert len(kept._placed) == 4 and len(few._placed) == 1


def test_weighted_maps_are_weighted_modulations(scene):
    network, inputs, _ = scene
    latents = inputs["z_t"].shape[-2:]
    with torch.no_grad():
        shown = network.saft_maps(inputs["maps"], *latents)
        nothing = network.saft_maps({n: m * 0 for n, m in inputs["maps"].items()}, *latents)
        mixed, first, second = (
            build(scene, shown=s)._conditions([(0, 0)], None).unet[0].modulation
            for s in ([(0.3, shown), (0.7, nothing)], [(1.0, shown)], [(1.0, nothing)])
        )
    for part, a, b in zip(mixed, first, second, strict=True):
        torch.testing.assert_close(part, 0.3 * a + 0.7 * b)
