"""Objective and sampler against closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from megasr.diffusion import (
    add_noise,
    ddim,
    diffusion_loss,
    guided,
    prediction_target,
    spaced_timesteps,
    split_prediction,
    stratified_timesteps,
)
from megasr.errors import UsageError

SCHEDULERS = {
    kind: DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind)
    for kind in ("epsilon", "v_prediction")
}


def gaussian_denoiser(scheduler, variance):
    """The exact denoiser of z0 ~ N(0, variance): E[z0 | z_t], expressed as the scheduler predicts."""

    def denoise(z_t, timesteps):
        a = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        z0 = a.sqrt() * variance / (a * variance + 1 - a) * z_t
        noise = (z_t - a.sqrt() * z0) / (1 - a).sqrt()
        return noise if scheduler.config.prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * z0

    return denoise


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_ddim_with_the_exact_gaussian_denoiser_gives_that_gaussian(scheduler):
    noise = torch.randn(4, 2, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    timesteps = spaced_timesteps(500, 1.0, 1000)
    z0 = ddim(
        gaussian_denoiser(scheduler, 0.25), scheduler.alphas_cumprod.double(), scheduler.config.prediction_type,
        noise, timesteps,
    )  # fmt: skip
    assert z0.std().item() == pytest.approx(0.5, rel=0.02)


def test_ddim_equals_diffusers_ddim():
    scheduler = SCHEDULERS["v_prediction"]
    reference = DDIMScheduler.from_config(
        scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    reference.set_timesteps(10)
    timesteps = spaced_timesteps(10, 1.0, 1000)
    assert timesteps == reference.timesteps.tolist()
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    denoise = gaussian_denoiser(scheduler, 0.5)
    expected = z
    for t in reference.timesteps:
        expected = reference.step(denoise(expected, t[None]), t, expected).prev_sample
    torch.testing.assert_close(ddim(denoise, scheduler.alphas_cumprod, "v_prediction", z, timesteps), expected)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_perfect_prediction_costs_nothing_and_splits_into_its_parts(kind):
    scheduler = SCHEDULERS[kind]
    z0, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([10, 500, 900])
    target = prediction_target(scheduler, z0, noise, timesteps)
    assert torch.equal(diffusion_loss(lambda z, t: target, scheduler, z0, noise, timesteps), torch.zeros(3))
    worse = diffusion_loss(lambda z, t: target + 1, scheduler, z0, noise, timesteps)
    torch.testing.assert_close(worse, torch.ones(3))
    z_t = add_noise(scheduler, z0, noise, timesteps)
    alpha = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    got_z0, got_noise = split_prediction(target, z_t, alpha, kind)
    torch.testing.assert_close(got_z0, z0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got_noise, noise, atol=1e-4, rtol=1e-4)


def test_other_predictions_are_refused():
    with pytest.raises(UsageError, match="'sample'"):
        scheduler = DDPMScheduler(prediction_type="sample")
        prediction_target(scheduler, torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.long))


def test_spaced_timesteps():
    assert spaced_timesteps(4, 1.0, 1000) == [999, 749, 499, 249]
    assert spaced_timesteps(4, 0.4, 1000) == [399, 299, 199, 99]
    for steps, start in ((0, 1.0), (1001, 1.0), (5, 0.0), (5, 1.5)):
        with pytest.raises(UsageError, match="sampler"):
            spaced_timesteps(steps, start, 1000)


def test_stratified_timesteps_are_the_middles_of_eight_parts():
    assert stratified_timesteps(8, 1000).tolist() == [62, 187, 312, 437, 562, 687, 812, 937]


def test_guidance_scale_one_is_the_conditional_model():
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert guided(conditional, unconditional, 1.0) == 2 and guided(conditional, unconditional, 3.0) == 4
