"""Other ways than DDIM from noise to a latent: diffusers' schedulers, by name.

diffusers spaces timesteps over the whole of a schedule. A sampler that starts from lq part of the way through it gets
a scheduler that knows only that part: its betas up to there, the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from megasr.diffusion.objective import Denoiser
from megasr.errors import UsageError, unknown_name

# (number of the step, timestep, latents after it) -> latents to go on with, None for these
OnStep = Callable[[int, int, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Solver:
    """A scheduler of diffusers.

    Attributes:
        scheduler: its class.
        options: what its config has beside the prior's noise schedule.
        scaled: it steps through z / sqrt(a_t) (variance exploding) in place of z.
        random: every step but the last adds noise.
    """

    scheduler: str
    options: dict[str, Any] = field(default_factory=dict)
    scaled: bool = False
    random: bool = False


SOLVERS = {
    "dpm++": Solver("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),  # 2211.01095
    "unipc": Solver("UniPCMultistepScheduler", {"solver_order": 2}),  # 2302.04867
    "euler": Solver("EulerDiscreteScheduler", scaled=True),  # 2206.00364, algorithm 1 without churn
    "ddpm": Solver("DDPMScheduler", {"variance_type": "fixed_small"}, random=True),  # 2006.11239; SeeSR's
}
DDIM = "ddim"  # megasr.diffusion.sampling


def check_solver(name: str) -> str:
    """The name, if there is a solver of this name.

    Raises:
        UsageError: there is none; shows the nearest names.
    """
    if name not in (DDIM, *SOLVERS):
        raise unknown_name("sampler.solver", name, (DDIM, *SOLVERS))
    return name


def build_scheduler(solver: Solver, trained: Any, num_steps: int, span: int) -> Any:
    """diffusers' scheduler for the last `span` timesteps of what the prior's scheduler was trained on.

    Args:
        solver: which one.
        trained: the prior's scheduler.
        num_steps: of the sampler.
        span: number of timesteps, from the clean end of the schedule.
    """
    import diffusers

    kept = {"prediction_type": trained.config.prediction_type, "num_train_timesteps": span}
    betas = trained.betas[:span].tolist()
    scheduler = getattr(diffusers, solver.scheduler)(
        trained_betas=betas, timestep_spacing="trailing", **kept, **solver.options
    )
    if "clip_sample" in scheduler.config:
        scheduler.register_to_config(clip_sample=False)  # a latent may be beyond 1
    scheduler.set_timesteps(num_steps)
    return scheduler


def solve(
    denoiser: Denoiser,
    solver: Solver,
    scheduler: Any,
    z: torch.Tensor,
    generators: Sequence[torch.Generator] = (),
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """z at the scheduler's first timestep -> z0.

    Args:
        denoiser: (z_t, timesteps (B,)) -> prediction.
        solver: what the scheduler is.
        scheduler: from build_scheduler.
        z: (B, C, h, w) latents.
        generators: one per sample, of the noise that a random solver adds: the batch does not matter.
        on_step: called after every step.

    Raises:
        UsageError: a random solver gets another number of generators.
    """
    if solver.random and len(generators) != len(z):
        raise UsageError(f"{solver.scheduler} draws noise for {len(z)} samples and got {len(generators)} generators")
    more: dict[str, Any] = {"generator": list(generators)} if solver.random else {}
    if solver.scaled:
        z = z / scheduler.alphas_cumprod[int(scheduler.timesteps[0])].sqrt()
    for number, timestep in enumerate(scheduler.timesteps):
        t = int(timestep)
        z_t = scheduler.scale_model_input(z, timestep)
        prediction = denoiser(z_t, torch.full((len(z),), t, device=z.device)).to(z.dtype)
        z = scheduler.step(prediction, timestep, z, **more).prev_sample
        if on_step is not None:
            changed = on_step(number, t, z)
            z = z if changed is None else changed
    return z
