"""How an adapter is trained and sampled; every field has an effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megasr.diffusion import DDIM, check_interval, check_solver
from megasr.errors import UsageError, split_names


@dataclass(frozen=True)
class ObjectiveConfig:
    """Dropout of the conditions, which classifier-free guidance needs, and timesteps of the loss.

    Args:
        text_dropout: share of samples whose tags are replaced by the empty prompt (SeeSR: 0.5).
        guidance_dropout: share of samples whose guidance maps are all set to zero.
        type_dropout: share of samples whose map of one type is set to zero, drawn for each type on its own: 0.5 makes
            all combinations of types equally likely. None is 0.
        timestep_fraction: share of the noise schedule, from its clean end, that is trained on, in (0, 1]; at least
            sampler.start_fraction.
        validation_timesteps: number of fixed, stratified timesteps of the validation loss.
    """

    text_dropout: float = 0.1
    guidance_dropout: float = 0.1
    timestep_fraction: float = 1.0
    validation_timesteps: int = 8
    type_dropout: float | None = None

    def __post_init__(self) -> None:
        for name in ("text_dropout", "guidance_dropout", "type_dropout"):
            if not 0 <= (getattr(self, name) or 0.0) <= 1:
                raise UsageError(f"objective.{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.timestep_fraction <= 1:
            raise UsageError(f"objective.timestep_fraction must be in (0, 1], got {self.timestep_fraction}")
        if self.validation_timesteps < 1:
            raise UsageError(f"objective.validation_timesteps must be at least 1, got {self.validation_timesteps}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW over the trained parameters (defaults: SeeSR's).

    Args:
        learning_rate: after the warm-up and before the decay.
        warmup_steps: optimizer steps of linear warm-up from 0.
        decay_share: share of all steps, at the end of training, of the linear decay to 0, in [0, 1].
        weight_decay: AdamW's.
        beta1: AdamW's.
        beta2: AdamW's.
        state_bits: 8 keeps AdamW's moments in 8 bits (2110.02861, bitsandbytes; needs a GPU, not with
            ShardedStrategy), a quarter of the memory; None keeps them in the dtype of the weights.
    """

    learning_rate: float = 5e-5
    warmup_steps: int = 0
    decay_share: float = 0.0
    weight_decay: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.999
    state_bits: Literal[8] | None = None

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UsageError(f"optimizer.learning_rate must be positive, got {self.learning_rate}")
        if self.warmup_steps < 0:
            raise UsageError(f"optimizer.warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0 <= self.decay_share <= 1:
            raise UsageError(f"optimizer.decay_share must be in [0, 1], got {self.decay_share}")


@dataclass(frozen=True)
class SamplerConfig:
    """How sr is sampled.

    Args:
        num_steps: steps of the solver.
        guidance_scale: strength of classifier-free guidance on the text; 1 switches it off and halves the cost.
        start: begin with pure `noise`, or with the noised latent of lq_up (`lq`, SeeSR's LRE).
        start_fraction: where in the noise schedule to begin, in (0, 1]; below 1 only with start `lq`.
        positive_prompt: appended to the tags (SeeSR: "clean, high-resolution, 8k").
        negative_prompt: the other half of classifier-free guidance; used when guidance_scale is not 1.
        shown_guidance: types whose maps the adapter gets, the others' are zero as in dropout; oracle_depth gives the
            depth of hq in the place of depth. None gives all.
        solver: see megasr.diffusion; None is `ddim`.
        guidance_interval: part of the noise schedule, as two fractions from its clean end, with classifier-free
            guidance (2404.07724); steps outside cost half. None is all of it.
    """

    num_steps: int = 20
    guidance_scale: float = 1.0
    start: Literal["noise", "lq"] = "lq"
    start_fraction: float = 1.0
    positive_prompt: str = ""
    negative_prompt: str = ""
    shown_guidance: tuple[str, ...] | str | None = None
    solver: Literal["ddim", "dpm++", "unipc", "euler", "ddpm"] | None = None
    guidance_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.shown_guidance is not None:
            object.__setattr__(self, "shown_guidance", split_names(self.shown_guidance))
        if self.solver is not None and check_solver(self.solver) == DDIM:
            object.__setattr__(self, "solver", None)  # one way to say it: equal settings are one run
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", check_interval(self.guidance_interval))
        if self.start == "noise" and self.start_fraction != 1:
            raise UsageError(
                f"sampler.start_fraction={self.start_fraction} needs sampler.start=lq: pure noise starts at 1"
            )
