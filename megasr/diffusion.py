"""Noise schedules, the diffusion loss, and samplers with classifier-free guidance. Noise is an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from megasr.errors import UsageError, unknown_name

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (z_t, timesteps) -> prediction


class Schedule(Protocol):
    """How a prior noises latents, and what it predicts of them: z_t = signal z0 + sigma noise.

    Timesteps are integers, from 0 at the clean end to num_timesteps - 1.
    """

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps."""

    def levels(self, timesteps: torch.Tensor | int, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal and sigma at one timestep, (), or at each of (B,), as (B, 1, 1, 1), on the device of z."""

    def add_noise(self, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """z_t (B, C, h, w) at `timesteps` (B,)."""

    def target(self, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the prior is trained to predict.

        Raises:
            UsageError: the prior predicts something that this project does not train.
        """

    def split(
        self, prediction: torch.Tensor, z_t: torch.Tensor, timesteps: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction -> estimates of (z0, noise)."""

    def draw(self, fractions: torch.Tensor, count: int) -> torch.Tensor:
        """Uniform draws in [0, 1) -> timesteps below `count`, with the density that the prior was trained with."""

    def model_timesteps(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Timesteps as the denoiser reads them."""


class DDPM:
    """Variance-preserving noise with predictions of the noise or of v (2006.11239, 2202.00512): SD 1.x, 2.x and XL.

    Args:
        scheduler: diffusers' DDPMScheduler; signal is sqrt(a_t), a_t its cumulative product of alphas.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    @property
    def num_timesteps(self) -> int:
        return self.scheduler.config.num_train_timesteps

    def levels(self, timesteps: torch.Tensor | int, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = _at(self.scheduler.alphas_cumprod, timesteps, z)
        return alphas.sqrt(), (1 - alphas).sqrt()

    def add_noise(self, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(z0, noise, timesteps)

    def target(self, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        if self._predicts_v():
            return self.scheduler.get_velocity(z0, noise, timesteps)
        return noise

    def split(
        self, prediction: torch.Tensor, z_t: torch.Tensor, timesteps: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        signal, sigma = self.levels(timesteps, z_t)
        if self._predicts_v():  # v = signal noise - sigma z0
            return signal * z_t - sigma * prediction, signal * prediction + sigma * z_t
        return (z_t - sigma * prediction) / signal, prediction

    def draw(self, fractions: torch.Tensor, count: int) -> torch.Tensor:
        return (fractions * count).long()

    def model_timesteps(self, timesteps: torch.Tensor) -> torch.Tensor:
        return timesteps

    def _predicts_v(self) -> bool:
        kind = self.scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise UsageError(
                f"prediction_type {kind!r} of the prior's scheduler; this project trains epsilon or v_prediction"
            )
        return kind == "v_prediction"


class Flow:
    """Rectified flow (2209.03003) with SD 3's shift and logit-normal density (2403.03206, eq. 19 and 23).

    signal is 1 - sigma, the prediction the velocity noise - z0.

    Args:
        scheduler: diffusers' FlowMatchEulerDiscreteScheduler, whose table of sigmas is taken.

    Raises:
        UsageError: the shift depends on the size of the image.
    """

    def __init__(self, scheduler: Any) -> None:
        if scheduler.config.use_dynamic_shifting:
            raise UsageError("use_dynamic_shifting of the prior's scheduler; this project has flows of one shift")
        self.num_timesteps: int = scheduler.config.num_train_timesteps
        base = torch.arange(1, self.num_timesteps + 1, dtype=torch.float32) / self.num_timesteps
        shift = scheduler.config.shift
        self.sigmas = shift * base / (1 + (shift - 1) * base)

    def levels(self, timesteps: torch.Tensor | int, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = _at(self.sigmas, timesteps, z)
        return 1 - sigma, sigma

    def add_noise(self, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        signal, sigma = self.levels(timesteps, z0)
        return signal * z0 + sigma * noise

    def target(self, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return noise - z0

    def split(
        self, prediction: torch.Tensor, z_t: torch.Tensor, timesteps: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        signal, sigma = self.levels(timesteps, z_t)
        return z_t - sigma * prediction, z_t + signal * prediction

    def draw(self, fractions: torch.Tensor, count: int) -> torch.Tensor:
        logit_normal = torch.special.ndtri(fractions).sigmoid()
        return (logit_normal * count).long().clamp(max=count - 1)

    def model_timesteps(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.sigmas.to(timesteps.device)[timesteps] * self.num_timesteps


def _at(table: torch.Tensor, timesteps: torch.Tensor | int, z: torch.Tensor) -> torch.Tensor:
    found = table.to(z.device)[timesteps]
    return found.view(-1, 1, 1, 1) if isinstance(timesteps, torch.Tensor) else found


def diffusion_loss(
    denoiser: Denoiser, schedule: Schedule, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the prediction, one value per sample, shape (B,), in float32 (2006.11239, eq. 14)."""
    prediction = denoiser(schedule.add_noise(z0, noise, timesteps), timesteps)
    target = schedule.target(z0, noise, timesteps)
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def stratified_fractions(num_strata: int) -> torch.Tensor:
    """The middles of `num_strata` equal parts of [0, 1], for a validation loss without draws; see Schedule.draw."""
    return (torch.arange(num_strata) + 0.5) / num_strata


# (number of the step, timestep, latents after it) -> latents to go on with, None for these
OnStep = Callable[[int, int, torch.Tensor], torch.Tensor | None]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Solver:
    """A scheduler of diffusers.

    Attributes:
        scheduler: its class.
        options: its config beside the prior's noise schedule.
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
DDIM = "ddim"  # not diffusers': its steps are right only where num_steps divides the schedule


def check_solver(name: str) -> str:
    """The name, if there is a solver of this name.

    Raises:
        UsageError: there is none; shows the nearest names.
    """
    if name not in (DDIM, *SOLVERS):
        raise unknown_name("sampler.solver", name, (DDIM, *SOLVERS))
    return name


def build_scheduler(solver: Solver, trained: Any, num_steps: int, span: int) -> Any:
    """diffusers' scheduler for the `span` timesteps at the clean end of the prior's scheduler, `trained`."""
    import diffusers

    scheduler = getattr(diffusers, solver.scheduler)(
        trained_betas=trained.betas[:span].tolist(),
        timestep_spacing="trailing",
        prediction_type=trained.config.prediction_type,
        num_train_timesteps=span,
        **solver.options,
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
    """Latents z (B, C, h, w) at the first timestep of a scheduler from build_scheduler -> z0.

    A random solver adds noise of `generators`, one per sample, so that the batch does not matter.

    Raises:
        UsageError: a random solver gets another number of generators.
    """
    if solver.random and len(generators) != len(z):
        raise UsageError(f"{solver.scheduler} draws noise for {len(z)} samples and got {len(generators)} generators")
    arguments: dict[str, Any] = {"generator": list(generators)} if solver.random else {}
    if solver.scaled:
        z = z / scheduler.alphas_cumprod[int(scheduler.timesteps[0])].sqrt()
    for number, timestep in enumerate(scheduler.timesteps):
        z_t = scheduler.scale_model_input(z, timestep)
        prediction = denoiser(z_t, timestep.to(z.device).long().expand(len(z))).to(z.dtype)
        z = scheduler.step(prediction, timestep, z, **arguments).prev_sample
        z = _after(on_step, number, int(timestep), z)
    return z


def ddim(
    denoiser: Denoiser, schedule: Schedule, z: torch.Tensor, timesteps: list[int], on_step: OnStep | None = None
) -> torch.Tensor:
    """DDIM with eta = 0 (2010.02502, eq. 12): z at timesteps[0] -> z0. The last step returns its z0 estimate.

    On a flow these are Euler's steps.
    """
    for number, (t, t_next) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
        prediction = denoiser(z, torch.full((len(z),), t, device=z.device)).to(z.dtype)
        z0, noise = schedule.split(prediction, z, t)
        if t_next is None:
            z = z0
        else:
            signal, sigma = schedule.levels(t_next, z)
            z = signal * z0 + sigma * noise
        z = _after(on_step, number, t, z)
    return z


def _after(on_step: OnStep | None, number: int, timestep: int, z: torch.Tensor) -> torch.Tensor:
    changed = on_step(number, timestep, z) if on_step is not None else None
    return z if changed is None else changed


def spaced_timesteps(num_steps: int, start_fraction: float, num_train_timesteps: int) -> list[int]:
    """`num_steps` equally spaced timesteps, the first at start_fraction of the schedule, descending, the last above 0.

    "Trailing" spacing (2305.08891, sec. 3.3): the sampler starts where the training schedule ends.

    Raises:
        UsageError: no step is asked for, more than the schedule has, or the start is outside (0, 1].
    """
    if not 0 < start_fraction <= 1:
        raise UsageError(f"sampler.start_fraction must be in (0, 1], got {start_fraction}")
    span = start_fraction * num_train_timesteps
    if not 1 <= num_steps <= span:
        raise UsageError(
            f"sampler.num_steps must be from 1 to {int(span)} (start_fraction of the schedule), got {num_steps}"
        )
    return [round(span * (num_steps - i) / num_steps) - 1 for i in range(num_steps)]


def guided(conditional: torch.Tensor, unconditional: torch.Tensor, cfg_scale: float) -> torch.Tensor:
    """Classifier-free guidance (2207.12598, eq. 6 with w + 1 = cfg_scale)."""
    return unconditional + cfg_scale * (conditional - unconditional)


def is_guided(timestep: int, num_train_timesteps: int, cfg_scale: float, interval: Interval | None) -> bool:
    """Whether a step has classifier-free guidance: it costs twice as much."""
    low, high = interval or (0.0, 1.0)
    return cfg_scale != 1 and low <= (timestep + 1) / num_train_timesteps <= high


def check_interval(interval: Interval, name: str = "sampler.guidance_interval") -> Interval:
    """A part of the noise schedule, as fractions from its clean end; that of classifier-free guidance is 2404.07724's.

    Raises:
        UsageError: it is not two fractions in ascending order.
    """
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise UsageError(f"{name} must be two ascending fractions in [0, 1], got {interval}")
    return interval[0], interval[1]
