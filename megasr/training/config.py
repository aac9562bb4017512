"""How an adapter is trained and sampled; every field has an effect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from megasr.diffusion import DDIM, check_interval, check_solver
from megasr.errors import UsageError, split_names
from megasr.images import ColorFix, check_color_fix

DENOISE = "denoise"
SAMPLED = ("num_steps", "start", "start_fraction")  # fields of the sampler that these objectives train
STEPS = {"one_step": (1, 1), "few_step": (2, 4)}  # objectives that train the sampler's whole path, in so many steps


@dataclass(frozen=True)
class CriticConfig:
    """What the terms csd, vsd and gan judge a restoration by.

    Args:
        guidance_scale: classifier-free guidance of the prior in csd and vsd (OSEDiff, PiSA-SR: 7.5).
        timesteps: part of the noise schedule in which csd and vsd compare, as two fractions from its clean end.
        lora_rank: of vsd's critic, a LoRA on the frozen prior (OSEDiff: 4).
        features: frozen network on whose features gan's discriminator stands: `vgg16`, `tiny` (the vision tower of the
            shipped CLIP), or a convolutional model of timm whose weights are in the hub's cache.
        learning_rate: of vsd's critic and gan's discriminator.
    """

    guidance_scale: float = 7.5
    timesteps: tuple[float, float] = (0.02, 0.98)
    lora_rank: int = 4
    features: str = "vgg16"
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", check_interval(self.timesteps, "objective.critic.timesteps"))
        if self.lora_rank < 1:
            raise UsageError(f"objective.critic.lora_rank must be at least 1, got {self.lora_rank}")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"objective.critic.learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.guidance_scale < math.inf:
            raise UsageError(f"objective.critic.guidance_scale must not be negative, got {self.guidance_scale}")


# Which terms read a field of the critic.
_READ_BY = {
    "guidance_scale": ("csd", "vsd"),
    "timesteps": ("csd", "vsd"),
    "lora_rank": ("vsd",),
    "features": ("gan",),
    "learning_rate": ("vsd", "gan"),
}


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the adapter is trained for: to denoise at any timestep, or to restore in the few steps of the sampler.

    `one_step` and `few_step` run the sampler as in inference and compare its result with hq by a sum of terms; sampler
    says where they begin (`start: noiseless_lq` and `start_fraction: 0.25` are OSEDiff's input at timestep 249).

    Args:
        text_dropout: share of samples whose tags are replaced by the empty prompt (SeeSR: 0.5).
        guidance_dropout: share of samples whose guidance maps are all set to zero.
        type_dropout: share of samples whose map of one type is set to zero, drawn for each type on its own: 0.5 makes
            all combinations of types equally likely. None is 0.
        timestep_fraction: share of the noise schedule, from its clean end, that is trained on, in (0, 1]; at least
            sampler.start_fraction.
        validation_timesteps: number of fixed, stratified timesteps of the validation loss.
        kind: `denoise`, the diffusion loss; `one_step`, sampler.num_steps 1; `few_step`, sampler.num_steps 2 to 4. None
            is denoise.
        terms: weights of the terms of one_step's and few_step's loss by name (megasr.losses.restoration.TERMS): l1, l2,
            latent, latent_mean, lpips_alex, lpips_vgg, dists, edge, frequency, csd, vsd, gan. 0 leaves a term out.
        term_starts: optimizer step at which a term joins, by name; the others count from the first step.
        critic: settings of csd, vsd and gan; None takes the defaults.
        weights_dir: folder in which the weights of LPIPS, DISTS and VGG16 are looked for first.
    """

    text_dropout: float = 0.1
    guidance_dropout: float = 0.1
    timestep_fraction: float = 1.0
    validation_timesteps: int = 8
    type_dropout: float | None = None
    kind: Literal["denoise", "one_step", "few_step"] | None = None
    terms: dict[str, float] | None = None
    term_starts: dict[str, int] | None = None
    critic: CriticConfig | None = None
    weights_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("text_dropout", "guidance_dropout", "type_dropout"):
            if not 0 <= (getattr(self, name) or 0.0) <= 1:
                raise UsageError(f"objective.{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.timestep_fraction <= 1:
            raise UsageError(f"objective.timestep_fraction must be in (0, 1], got {self.timestep_fraction}")
        if self.validation_timesteps < 1:
            raise UsageError(f"objective.validation_timesteps must be at least 1, got {self.validation_timesteps}")
        if isinstance(self.critic, Mapping):  # of a checkpoint
            object.__setattr__(self, "critic", CriticConfig(**self.critic))
        if self.kind == DENOISE:
            object.__setattr__(self, "kind", None)  # one way to say it: equal settings are one run
        self._check_terms() if self.samples else self._refuse_unused(
            DENOISE, "terms", "term_starts", "critic", "weights_dir"
        )

    @property
    def samples(self) -> bool:
        """Whether the loss is of what the sampler makes, and so the sampler is part of the training."""
        return self.kind is not None

    def _refuse_unused(self, kind: str | None, *names: str) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        if unused := [f"objective.{name}" for name in names if getattr(self, name) != defaults[name]]:
            raise UsageError(f"{', '.join(unused)} would do nothing: objective.kind is {kind}; leave it out")

    def _check_terms(self) -> None:
        self._refuse_unused(self.kind, "timestep_fraction", "validation_timesteps")
        weights = self.terms or {}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise UsageError(f"objective.terms.{name} must be a weight of 0 or more, got {weight}")
        if not any(weights.values()):
            raise UsageError(
                f"objective.kind {self.kind} needs objective.terms: weights by name, such as {{l1: 1, lpips_vgg: 2}}"
            )
        for name, step in (self.term_starts or {}).items():
            if not weights.get(name):
                raise UsageError(f"objective.term_starts.{name} would do nothing: objective.terms has no {name}")
            if step < 1:
                raise UsageError(f"objective.term_starts.{name} must be a step of 1 or more, got {step}")
        if all(name in (self.term_starts or {}) for name, weight in weights.items() if weight):
            raise UsageError("objective.term_starts: one term must count from the first step, else nothing is trained")
        if self.critic is not None and not any(weights.get(name) for name in ("csd", "vsd", "gan")):
            raise UsageError("objective.critic would do nothing: objective.terms has no csd, vsd or gan")
        for name, readers in _READ_BY.items():
            set_to = getattr(self.critic, name, getattr(CriticConfig(), name))
            if set_to != getattr(CriticConfig(), name) and not any(weights.get(reader) for reader in readers):
                asked = " or ".join(readers)
                raise UsageError(f"objective.critic.{name} would do nothing: objective.terms has no {asked}")


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
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"optimizer.learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"optimizer.weight_decay must not be negative, got {self.weight_decay}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"optimizer.{name} must be in [0, 1), got {getattr(self, name)}")
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
        start: begin with pure `noise`, with the noised latent of lq_up (`lq`, SeeSR's LRE), or with that latent as it
            is (`noiseless_lq`, OSEDiff's; only an adapter that was trained so can use it). On a flow `lq` needs a
            start_fraction below 1: at 1 the noised latent is noise alone.
        start_fraction: where in the noise schedule to begin, in (0, 1]; 1 with start `noise`.
        positive_prompt: appended to the tags (SeeSR: "clean, high-resolution, 8k").
        negative_prompt: the other half of classifier-free guidance; used when guidance_scale is not 1.
        shown_guidance: types whose maps the adapter gets, the others' are zero as in dropout; oracle_depth gives the
            depth of hq in the place of depth. None gives all.
        solver: see megasr.diffusion; None is `ddim`, on a flow Euler's steps, beside which it has no other.
        guidance_interval: part of the noise schedule, as two fractions from its clean end, with classifier-free
            guidance (2404.07724); steps outside cost half. None is all of it.
        color_fix: what every restoration takes from the colours of lq: `adain`, `wavelet` (see megasr.images.fix_color)
            or `none`. Losses see sr without it.
    """

    num_steps: int = 20
    guidance_scale: float = 1.0
    start: Literal["noise", "lq", "noiseless_lq"] = "lq"
    start_fraction: float = 1.0
    positive_prompt: str = ""
    negative_prompt: str = ""
    shown_guidance: tuple[str, ...] | str | None = None
    solver: Literal["ddim", "dpm++", "unipc", "euler", "ddpm"] | None = None
    guidance_interval: tuple[float, float] | None = None
    color_fix: ColorFix = "none"

    def __post_init__(self) -> None:
        if self.shown_guidance is not None:
            object.__setattr__(self, "shown_guidance", split_names(self.shown_guidance))
        if self.solver is not None and check_solver(self.solver) == DDIM:
            object.__setattr__(self, "solver", None)  # one way to say it: equal settings are one run
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", check_interval(self.guidance_interval))
        check_color_fix(self.color_fix)
        if self.start == "noise" and self.start_fraction != 1:
            raise UsageError(
                f"sampler.start_fraction={self.start_fraction} needs sampler.start=lq: pure noise starts at 1"
            )
