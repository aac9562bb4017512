"""Objective and sampler against closed forms."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from megasr.diffusion import DDPM, Flow, ddim, diffusion_loss, guided, spaced_timesteps, stratified_fractions
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
    exact = copy.deepcopy(scheduler)
    exact.alphas_cumprod = exact.alphas_cumprod.double()
    z0 = ddim(gaussian_denoiser(scheduler, 0.25), DDPM(exact), noise, timesteps)
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
    torch.testing.assert_close(ddim(denoise, DDPM(scheduler), z, timesteps), expected)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_perfect_prediction_costs_nothing_and_splits_into_its_parts(kind):
    scheduler = SCHEDULERS[kind]
    z0, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([10, 500, 900])
    check_perfect_prediction(DDPM(scheduler), z0, noise, timesteps)


def check_perfect_prediction(schedule, z0, noise, timesteps):
    target = schedule.target(z0, noise, timesteps)
    assert torch.equal(diffusion_loss(lambda z, t: target, schedule, z0, noise, timesteps), torch.zeros(3))
    worse = diffusion_loss(lambda z, t: target + 1, schedule, z0, noise, timesteps)
    torch.testing.assert_close(worse, torch.ones(3))
    got_z0, got_noise = schedule.split(target, schedule.add_noise(z0, noise, timesteps), timesteps)
    torch.testing.assert_close(got_z0, z0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got_noise, noise, atol=1e-4, rtol=1e-4)


def test_other_predictions_are_refused():
    schedule = DDPM(DDPMScheduler(prediction_type="sample"))
    with pytest.raises(UsageError, match="'sample'"):
        schedule.target(torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.long))


SHIFTED = FlowMatchEulerDiscreteScheduler(shift=3.0)  # Stable Diffusion 3's


def test_a_flow_has_the_sigmas_of_diffusers_and_noises_as_it_does():
    flow, fresh = Flow(SHIFTED), FlowMatchEulerDiscreteScheduler(shift=3.0)
    torch.testing.assert_close(flow.sigmas, fresh.sigmas.flip(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(flow.model_timesteps(torch.arange(1000)), fresh.timesteps.flip(0), atol=1e-3, rtol=0)
    z0, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([10, 500, 999])
    expected = fresh.scale_noise(z0, fresh.timesteps.flip(0)[timesteps], noise)
    torch.testing.assert_close(flow.add_noise(z0, noise, timesteps), expected)
    assert torch.equal(flow.add_noise(z0, noise, torch.full((3,), 999)), noise), "the last timestep is pure noise"
    check_perfect_prediction(flow, z0, noise, timesteps)


def test_steps_on_a_flow_are_those_of_diffusers_euler_from_any_part_of_it():
    flow = Flow(SHIFTED)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def velocity(z_t, t):
        return 0.5 * z_t - t.view(-1, 1, 1, 1) / 1000

    for start in (1.0, 0.4):
        reference = FlowMatchEulerDiscreteScheduler(shift=3.0)
        reference.set_timesteps(sigmas=[start * (5 - i) / 5 for i in range(5)])
        expected = z
        for t in reference.timesteps:
            expected = reference.step(velocity(expected, t[None]), t, expected).prev_sample
        timesteps = spaced_timesteps(5, start, 1000)
        got = ddim(lambda z_t, t: velocity(z_t, flow.model_timesteps(t)), flow, z, timesteps)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_timesteps_of_a_flow_are_drawn_logit_normally():
    fractions = (torch.arange(100_000) + 0.5) / 100_000
    drawn = Flow(SHIFTED).draw(fractions, 1000)
    logits = ((drawn + 0.5) / 1000).logit()
    assert logits.mean().item() == pytest.approx(0, abs=0.01) and logits.std().item() == pytest.approx(1, abs=0.01)
    assert Flow(SHIFTED).draw(torch.tensor([0.0, 0.999999]), 10).tolist() == [0, 9]


def test_a_shift_that_depends_on_the_image_is_refused():
    with pytest.raises(UsageError, match="use_dynamic_shifting"):
        Flow(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))


def test_spaced_timesteps():
    assert spaced_timesteps(4, 1.0, 1000) == [999, 749, 499, 249]
    assert spaced_timesteps(4, 0.4, 1000) == [399, 299, 199, 99]
    for steps, start in ((0, 1.0), (1001, 1.0), (5, 0.0), (5, 1.5)):
        with pytest.raises(UsageError, match="sampler"):
            spaced_timesteps(steps, start, 1000)


def test_validation_timesteps_are_the_middles_of_eight_parts():
    timesteps = DDPM(SCHEDULERS["epsilon"]).draw(stratified_fractions(8), 1000)
    assert timesteps.tolist() == [62, 187, 312, 437, 562, 687, 812, 937]


def test_guidance_scale_one_is_the_conditional_model():
    conditional, unconditional = torch.tensor([2.0]), torch.tensor([1.0])
    assert guided(conditional, unconditional, 1.0) == 2 and guided(conditional, unconditional, 3.0) == 4
