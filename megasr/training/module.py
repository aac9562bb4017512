"""MegaSRModule: how a MegaSR is trained and validated, in Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from megasr.batch import SRBatch
from megasr.diffusion import stratified_fractions
from megasr.errors import MegaSRError, UsageError, split_names
from megasr.guidance.extract import ExtractorConfig
from megasr.images import upsample_lq
from megasr.losses.restoration import RestorationLoss
from megasr.losses.terms import Estimate
from megasr.networks.config import AdapterConfig
from megasr.networks.network import Conditions
from megasr.rng import keyed_normal, keyed_uniform
from megasr.semantics.clip import VisionConfig
from megasr.semantics.tags import TaggerConfig
from megasr.system import FrozenParts as FrozenParts
from megasr.system import MegaSR, plain_settings
from megasr.training.checkpoint import (
    adapter_parameters,
    check_trained_state,
    check_training_state,
    critic_parameters,
    initialise,
    join_critics,
    split_state,
)
from megasr.training.config import DENOISE, STEPS, CriticConfig, ObjectiveConfig, OptimizerConfig, SamplerConfig
from megasr.training.sharding import AdamW, ShardedStrategy, clip_gradients


def trapezoid(step: int, steps: float, warmup_steps: int, decay_share: float) -> float:
    """Warmup-stable-decay factor of the learning rate: linear up, level, linear down to 0 (2404.06395).

    Until the decay, the last share of all steps, it does not depend on their number (infinite without a decay): a
    longer training can go on from a checkpoint.

    Raises:
        UsageError: a training without an end cannot decay.
    """
    rising = (step + 1) / max(1, warmup_steps)
    if decay_share == 0:
        return min(1.0, rising)
    if steps == float("inf"):
        raise UsageError("optimizer.decay_share counts from the end: set trainer.max_steps or trainer.max_epochs")
    return max(0.0, min(1.0, rising, (steps - step) / (decay_share * steps)))


def _check_sampler(objective: ObjectiveConfig, sampler: SamplerConfig, adapter: AdapterConfig) -> None:
    """Check that the sampler is one that the objective can train, and that its terms have what they need."""
    if adapter.encoder_lora is not None and (not objective.samples or sampler.start == "noise"):
        raise UsageError(
            "adapter.encoder_lora would do nothing: it needs objective.kind one_step or few_step, and sampler.start "
            f"lq or noiseless_lq; got {objective.kind or DENOISE} and {sampler.start}"
        )
    if not objective.samples:
        if sampler.start == "noiseless_lq":
            raise UsageError(
                "sampler.start noiseless_lq needs an adapter trained so: objective.kind one_step or few_step"
            )
        return
    least, most = STEPS[str(objective.kind)]
    if not least <= sampler.num_steps <= most:
        needed = str(least) if least == most else f"{least} to {most}"
        raise UsageError(f"objective.kind {objective.kind} needs sampler.num_steps {needed}, got {sampler.num_steps}")
    if sampler.solver is not None:
        raise UsageError(
            f"objective.kind {objective.kind} trains ddim's steps: leave sampler.solver out, got {sampler.solver}"
        )
    if (objective.terms or {}).get("csd") and not adapter.text:
        raise UsageError("objective.terms.csd compares the prior with and without words: it needs adapter.text true")


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW (1711.05101) over the parameters that are trained.

    Raises:
        UsageError: states in 8 bits, and the parameters are not on a GPU, or bitsandbytes is not installed.
    """
    trained = [p for p in parameters if p.requires_grad]
    settings = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "weight_decay": config.weight_decay}
    on_processor = trained[0].device.type == "cpu"
    if config.state_bits is None:
        # On a GPU torch chooses by itself: Lightning's gradient scaler cannot clip before a fused step.
        return AdamW(trained, **settings, fused=on_processor or None)
    if trained[0].device.type != "cuda":
        raise UsageError("model.optimizer.state_bits 8 needs a GPU; leave it out on the processor")
    try:
        import bitsandbytes
    except ImportError as error:
        raise UsageError("model.optimizer.state_bits 8 needs bitsandbytes: pip install bitsandbytes") from error
    return bitsandbytes.optim.AdamW8bit(trained, **settings)


def draw_dropout(batch: SRBatch, objective: ObjectiveConfig, types: Sequence[str], seed: int, step: int) -> SRBatch:
    """Add text_dropped, guidance_dropped and types_dropped, keyed by image and optimizer step.

    What the batch already holds of them is kept: it is a replay.
    """

    def draw(purpose: str, share: float) -> torch.Tensor:
        return keyed_uniform(seed, batch["keys"], purpose, step) < share

    dropped = {
        "text_dropped": draw("text_dropout", objective.text_dropout),
        "guidance_dropped": draw("guidance_dropout", objective.guidance_dropout),
        "types_dropped": {name: draw(f"type_dropout/{name}", objective.type_dropout or 0.0) for name in types},
    }
    return SRBatch(**{**dropped, **batch})  # type: ignore[typeddict-item]


def without_dropped(batch: SRBatch, maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The maps, zero where a sample loses all of them or this one."""
    kept = {name: ~(batch["guidance_dropped"] | batch["types_dropped"][name]) for name in maps}
    return {name: value * kept[name].view(-1, 1, 1, 1).to(value) for name, value in maps.items()}


def finite_mean(module: lightning.LightningModule, loss: torch.Tensor, batch: SRBatch) -> torch.Tensor:
    """The mean () of the losses (B,) over all processes, which must call it together.

    Raises:
        MegaSRError: one is not finite, here or in another process; names the images of this one. Their degradation and
            dropout are keyed by image and step: the same recipe draws them again.
    """
    mean = loss.detach().mean()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    if torch.isfinite(mean):
        return mean
    if torch.isfinite(loss).all():
        raise MegaSRError(f"loss is not finite at step {module.global_step} in another process; see its line")
    bad = [key for key, value in zip(batch["keys"], loss, strict=True) if not torch.isfinite(value)]
    raise MegaSRError(
        f"loss is not finite at step {module.global_step} for {', '.join(bad)}; the weights were not changed"
    )


def mean_without_repeated(trainer: lightning.Trainer | None, batch_index: int, losses: torch.Tensor) -> torch.Tensor:
    """Weight val/loss so that samples repeated by DistributedSampler count once: losses (any, B) -> mean ().

    Lightning averages over the batches of all processes by their sizes, repeated samples included; this makes up for
    it. Without a trainer all samples count.
    """
    loader = None if trainer is None else trainer.val_dataloaders
    sampler = getattr(loader, "sampler", None)
    if trainer is None or loader is None or not isinstance(sampler, torch.utils.data.DistributedSampler):
        return losses.mean()
    ranks, images = sampler.num_replicas, len(loader.dataset)
    first = batch_index * loader.batch_size * ranks + sampler.rank
    counted = len(range(first, min(images, first + losses.shape[1] * ranks), ranks))
    seen = min(trainer.num_val_batches[0] * loader.batch_size, len(sampler)) * ranks
    return losses[:, :counted].sum() / losses.numel() * (seen / min(seen, images))


class MegaSRModule(MegaSR, lightning.LightningModule):
    """Train a MegaSR adapter on a frozen text-to-image prior (2503.08096 v2).

    Args:
        prior: `tiny`, a diffusers folder, `sd21-base` or a hub id in the local cache.
        adapter: what the trained part consists of.
        objective: dropout of the conditions and validation timesteps.
        optimizer: AdamW's settings.
        sampler: how sr is sampled.
        vision: the tower of the image tokens and of v1's representation; needed with adapter.image and adapter.rca
            unless the batches bring them.
        extractors: networks that make the guidance maps; None takes the shipped ones.
        tagger: what makes the tags of lq; None takes those that the batches bring.
        frozen_dtype: `bfloat16` holds the weights of the frozen prior in half the memory; it needs trainer.precision
            bf16-mixed. None holds them in single precision.
        compile: `blocks` runs every block through torch.compile; None compiles nothing.
        init: checkpoint of a trained adapter, or `tiny`, the shipped ControlNet of the tiny prior; the parts that it
            shares with this one start from its weights.
        init_parts: start these parts alone from it, such as `lq_encoder,controlnet` of an adapter with other guidance
            types (lq_encoder, controlnet, lq_stream, csm, rca, msfm, prior_lora, encoder_lora); none is all.
        scale_factor: size of hq over size of lq.
        seed: of every draw in training and evaluation.
        text_states: folder of `megasr embed`; prompts are looked up there, and the prior's text encoder is not loaded.

    Raises:
        UsageError: nothing would be trained, the sampler begins at timesteps that are not trained on, or a setting
            would do nothing.
        MegaSRError: the prior or the vision tower is not on this machine, or init does not fit.
    """

    strict_loading = False  # a checkpoint lacks the prior on purpose; on_load_checkpoint checks what it must hold

    def __init__(
        self,
        prior: str = "tiny",
        adapter: AdapterConfig = AdapterConfig(),  # noqa: B008  (frozen)
        objective: ObjectiveConfig = ObjectiveConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        sampler: SamplerConfig = SamplerConfig(),  # noqa: B008
        vision: VisionConfig | None = None,
        extractors: ExtractorConfig | None = None,
        tagger: TaggerConfig | None = None,
        frozen_dtype: Literal["bfloat16"] | None = None,
        compile: Literal["blocks"] | None = None,
        init: str | None = None,
        init_parts: tuple[str, ...] | str = (),
        scale_factor: int = 4,
        seed: int = 0,
        text_states: str | None = None,
    ) -> None:
        init_parts = split_names(init_parts)
        if init_parts and init is None:
            raise UsageError("model.init_parts would do nothing without model.init")
        if sampler.start_fraction > objective.timestep_fraction:
            raise UsageError(
                f"sampler.start_fraction {sampler.start_fraction} begins where nothing is trained: "
                f"objective.timestep_fraction is {objective.timestep_fraction}; lower the first or raise the second"
            )
        if objective.type_dropout is not None and not adapter.guidance:
            raise UsageError("model.objective.type_dropout would do nothing: model.adapter.guidance is empty")
        _check_sampler(objective, sampler, adapter)
        super().__init__(prior, adapter, sampler, vision, extractors, tagger, scale_factor, seed, text_states)
        training = {"frozen_dtype": frozen_dtype, "compile": compile, "init": init, "init_parts": init_parts}
        self.settings |= plain_settings(objective=objective, optimizer=optimizer, **training)
        self.save_hyperparameters(self.settings)
        self.objective, self.optimizer = objective, optimizer
        self.restoration_loss = None
        if objective.samples:
            network = partial(self.parts.perceptual, weights_dir=objective.weights_dir)
            self.restoration_loss = RestorationLoss(self.prior, objective, network, seed)
            if adapter.gradient_checkpointing and self.prior.vae._supports_gradient_checkpointing:
                self.prior.vae.enable_gradient_checkpointing()
        if init is not None:
            initialise(self, init, self.prior_fingerprint, init_parts)
        self.frozen_dtype, self.compiles = frozen_dtype, compile == "blocks"
        if self.compiles:
            self.network.compile_blocks()
        if frozen_dtype is not None:
            for frozen in (p for part in self.held_parts for p in part.parameters() if not p.requires_grad):
                frozen.data = frozen.data.to(getattr(torch, frozen_dtype))

    @property
    def held_parts(self) -> tuple[nn.Module, nn.Module]:
        """The parts that frozen_dtype is about; towers and extractors have dtypes of their own."""
        return self.prior, self.network

    def setup(self, stage: str) -> None:
        """Check that autocast casts between frozen and trained weights of different dtypes."""
        precision = self.trainer.precision
        if self.frozen_dtype is not None and precision != "bf16-mixed":
            raise UsageError(
                f"model.frozen_dtype {self.frozen_dtype} needs trainer.precision bf16-mixed, got {precision}"
            )

    def configure_model(self) -> None:
        """Shard the network where the strategy is FSDP2's."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.spread(self.network, critic_parameters(self).values())

    def training_step(self, batch: SRBatch, batch_index: int) -> dict[str, torch.Tensor]:
        """The mean loss, and for callbacks the loss, timestep and dropout of every sample."""
        step = self.global_step
        if "lq" not in batch:
            raise UsageError("the training images come without lq: data.degradation names how it is made")
        batch = draw_dropout(batch, self.objective, self.adapter.guidance, self.seed, step)
        lq_up = upsample_lq(batch["lq"], self.scale_factor)
        prompts, maps = self._drop_conditions(batch, lq_up)
        conditions = self.conditions(batch, lq_up, prompts, maps)
        if self.restoration_loss is None:
            loss, timesteps = self._denoise(batch, conditions, step)
        else:
            estimate = self._estimate(batch, lq_up, conditions, prompts, step)
            loss, parts = self.restoration_loss(estimate, step)
            for name, value in parts.items():
                self.log(f"train/{name}", value.mean(), batch_size=len(value))
            timesteps = torch.full((len(loss),), self._timesteps(self.sampler)[0], device=loss.device)
        self.log("train/loss", finite_mean(self, loss, batch), prog_bar=True, batch_size=len(loss))
        dropped = batch["guidance_dropped"]
        return {"loss": loss.mean(), "sample_loss": loss.detach(), "timesteps": timesteps, "guidance_dropped": dropped}

    def _denoise(self, batch: SRBatch, conditions: Conditions, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The diffusion loss of each sample, and its timestep."""
        keys, z0 = batch["keys"], self.latents(batch)
        noise = keyed_normal(self.seed, keys, z0.shape[1:], "training_noise", step).to(z0)
        fractions = keyed_uniform(self.seed, keys, "timestep", step)
        timesteps = self.prior.schedule.draw(fractions, self._trained_timesteps).to(z0.device)
        return self.loss(conditions, z0, noise, timesteps), timesteps

    def _estimate(
        self, batch: SRBatch, lq_up: torch.Tensor, conditions: Conditions, prompts: list[str], *step: int
    ) -> Estimate:
        """The batch restored by the sampler; noise of the start and of the terms is keyed by image and step."""
        z0 = self.sample(batch, lq_up, conditions, *step)
        purpose = step[0] if step else "validation"
        return Estimate(self.prior, batch, z0, self.latents, prompts, self.seed, purpose)

    def _drop_conditions(self, batch: SRBatch, lq_up: torch.Tensor) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Prompts and maps of a training batch without what is dropped."""
        prompts = self.prompts(batch, lq_up)
        prompts = ["" if drop else prompt for drop, prompt in zip(batch["text_dropped"], prompts, strict=True)]
        return prompts, without_dropped(batch, self.guidance_maps(batch))

    def validation_step(self, batch: SRBatch, batch_index: int) -> None:
        """A loss without draws: at fixed stratified timesteps with noise keyed by the image, or of restorations."""
        if self.restoration_loss is None:
            conditions, z0 = self.conditions(batch), self.latents(batch)
            noise = keyed_normal(self.seed, batch["keys"], z0.shape[1:], "validation_noise").to(z0)
            fractions = stratified_fractions(self.objective.validation_timesteps)
            strata = self.prior.schedule.draw(fractions, self._trained_timesteps)
            losses = torch.stack([self.loss(conditions, z0, noise, t.expand(len(z0)).to(z0.device)) for t in strata])
        else:
            lq_up = upsample_lq(batch["lq"], self.scale_factor)
            prompts = self.prompts(batch, lq_up)
            estimate = self._estimate(batch, lq_up, self.conditions(batch, lq_up, prompts), prompts)
            losses = self.restoration_loss.validation(estimate)[None]
        mean = mean_without_repeated(self._trainer, batch_index, losses)
        self.log("val/loss", mean, prog_bar=True, batch_size=len(batch["keys"]), sync_dist=True)

    def test_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        """sr of the batch; the callback ProtocolMetrics measures it."""
        return self.restore(batch)

    @property
    def _trained_timesteps(self) -> int:
        return max(1, round(self.objective.timestep_fraction * self.prior.schedule.num_timesteps))

    def configure_optimizers(self) -> dict[str, Any]:
        settings, optimizer = self.optimizer, build_optimizer(adapter_parameters(self).values(), self.optimizer)
        if critics := critic_parameters(self):
            learning_rate = (self.objective.critic or CriticConfig()).learning_rate
            optimizer.add_param_group({"params": list(critics.values()), "lr": learning_rate})
        decay = settings.decay_share
        steps = self.trainer.estimated_stepping_batches if decay else float("inf")
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: trapezoid(step, steps, settings.warmup_steps, decay)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the adapter's gradients and the critics' each on their own.

        Lightning itself refuses to clip for a fused optimizer in mixed precision, also where no scaler is.
        """
        if gradient_clip_val:
            for group in optimizer.param_groups:
                clip_gradients(group["params"], gradient_clip_val, by_value=gradient_clip_algorithm == "value")

    def on_train_start(self) -> None:
        steps = self.trainer.estimated_stepping_batches
        if late := [name for name, start in (self.objective.term_starts or {}).items() if start >= steps]:
            rank_zero_warn(f"objective.term_starts: the training ends at step {steps}, before {', '.join(late)} joins")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        split_state(self, checkpoint)
        checkpoint["prior_fingerprint"] = self.prior_fingerprint
        checkpoint["own_modules"] = self.own_modules

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        source = getattr(self._trainer, "ckpt_path", None) or "checkpoint"
        check_trained_state(self, checkpoint, self.prior_fingerprint, source)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            check_training_state(checkpoint, source)
            join_critics(self, checkpoint, source)
