"""Solvers of diffusers against the closed form that DDIM is held to."""

import pytest
import torch

from megasr.diffusion import DDPM, SOLVERS, build_scheduler, check_solver, ddim, solve, spaced_timesteps
from megasr.errors import UsageError
from megasr.rng import torch_generator
from megasr.training.config import SamplerConfig
from tests.unit.test_diffusion import SCHEDULERS, gaussian_denoiser


def sample(name, trained, z, num_steps, span=1000, keys=None, on_step=None):
    solver = SOLVERS[name]
    scheduler = build_scheduler(solver, trained, num_steps, span)
    keys = range(len(z)) if keys is None else keys
    generators = [torch_generator(0, key) for key in keys] if solver.random else []
    return solve(gaussian_denoiser(trained, 0.25), solver, scheduler, z, generators, on_step), scheduler


@pytest.fixture(scope="module")
def noise():
    return torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_gives_the_gaussian_that_the_denoiser_knows(name, kind, noise):
    z0, _ = sample(name, SCHEDULERS[kind], noise, 100)
    assert z0.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("steps", "fraction"), [(4, 1.0), (8, 0.8), (5, 0.37)])
def test_every_solver_steps_where_ddim_does_also_from_part_of_the_schedule(name, steps, fraction, noise):
    visited = []
    sample(name, SCHEDULERS["epsilon"], noise, steps, round(fraction * 1000), on_step=lambda n, t, z: visited.append(t))
    assert visited == spaced_timesteps(steps, fraction, 1000)


@pytest.mark.parametrize("name", ["dpm++", "unipc", "euler"])
def test_deterministic_solvers_go_where_ddim_goes_and_the_higher_orders_get_there_sooner(name, noise):
    trained = SCHEDULERS["v_prediction"]
    denoise = gaussian_denoiser(trained, 0.25)
    z = noise * 0.9

    def by_ddim(steps):
        return ddim(denoise, DDPM(trained), z, spaced_timesteps(steps, 0.8, 1000))

    exact = by_ddim(800)
    error, of_ddim = ((found - exact).abs().mean() for found in (sample(name, trained, z, 10, 800)[0], by_ddim(10)))
    assert error < (1.05 if name == "euler" else 0.8) * of_ddim


def test_the_noise_of_a_random_solver_belongs_to_the_image(noise):
    trained = SCHEDULERS["epsilon"]
    together, _ = sample("ddpm", trained, noise, 5)
    alone, _ = sample("ddpm", trained, noise[2:3], 5, keys=[2])
    torch.testing.assert_close(together[2:3], alone)
    with pytest.raises(UsageError, match="4 samples and got 0 generators"):
        solve(gaussian_denoiser(trained, 0.25), SOLVERS["ddpm"], build_scheduler(SOLVERS["ddpm"], trained, 2, 9), noise)


def test_names_and_intervals():
    with pytest.raises(UsageError, match=r"unknown sampler.solver 'dpm'; did you mean .*dpm\+\+"):
        check_solver("dpm")
    with pytest.raises(UsageError, match="unknown sampler.solver 'eular'; did you mean euler"):
        SamplerConfig(solver="eular")
    assert SamplerConfig(solver="ddim") == SamplerConfig()
    for interval in ((0.5, 0.2), (0, 2), (0.1,)):
        with pytest.raises(UsageError, match="two ascending fractions"):
            SamplerConfig(guidance_interval=interval)
