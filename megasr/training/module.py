"""MegaSRModule: a frozen prior, an adapter, and how the adapter is trained, validated and sampled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from megasr.batch import SRBatch, check_image
from megasr.diffusion.objective import diffusion_loss, stratified_timesteps
from megasr.errors import MegaSRError, UsageError
from megasr.files import open_whole
from megasr.guidance.extract import extract_guidance, shown_guidance
from megasr.guidance.sources import ExtractorConfig, Networks
from megasr.images import upsample_lq
from megasr.inference.restoration import Wanted, restore
from megasr.networks.config import AdapterConfig
from megasr.networks.network import Conditions, MegaSRNetwork
from megasr.networks.sites import Semantics
from megasr.prior import Prior, load_prior
from megasr.rng import keyed_normal, keyed_uniform
from megasr.semantics.clip import VisionConfig, VisionEncoder
from megasr.semantics.taggers import Tagger
from megasr.semantics.tags import TaggerConfig, build_tagger
from megasr.tracking import first_line
from megasr.training.checkpoint import (
    build_from_checkpoint,
    check_trained_state,
    check_training_state,
    initialise,
    trained_state,
)
from megasr.training.config import ObjectiveConfig, OptimizerConfig, SamplerConfig
from megasr.training.sharding import ShardedStrategy, clip_norm


class FrozenParts:
    """Loads what an adapter is trained on. A memory plan replaces it by parts that have sizes and no weights."""

    def prior(self, source: str) -> Prior:
        """See load_prior."""
        return load_prior(source)

    def vision(self, config: VisionConfig | None) -> VisionEncoder | None:
        """The vision tower, None when none is set."""
        return None if config is None else VisionEncoder(config)

    def tagger(self, config: TaggerConfig | None) -> Tagger | None:
        """The tagger, None when none is set."""
        return None if config is None else build_tagger(config)

    def networks(self, config: ExtractorConfig | None) -> Networks:
        """The extractors, which load themselves when they are needed."""
        return Networks(config)


def trapezoid(step: int, steps: float, warmup_steps: int, decay_share: float) -> float:
    """Up in a line, level, and down in a line to 0 over the last part (warmup-stable-decay, 2404.06395).

    Until the decay it does not depend on the length of training: a longer one can go on from a checkpoint.

    Args:
        step: from 0.
        steps: of the whole training; may be infinite when decay_share is 0.
        warmup_steps: of the way up; the first step already moves.
        decay_share: share of all steps that the way down takes, in [0, 1]; 0 is none.

    Raises:
        UsageError: a training without an end cannot decay.
    """
    rising = (step + 1) / max(1, warmup_steps)
    if decay_share == 0:
        return min(1.0, rising)
    if steps == float("inf"):
        raise UsageError("optimizer.decay_share counts from the end: set trainer.max_steps or trainer.max_epochs")
    return max(0.0, min(1.0, rising, (steps - step) / (decay_share * steps)))


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW (1711.05101) over the parameters that are trained.

    Raises:
        UsageError: averages in 8 bits, and the parameters are not on a GPU, or bitsandbytes is not installed.
    """
    trained = [p for p in parameters if p.requires_grad]
    settings = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
    }
    if config.state_bits is None:
        return torch.optim.AdamW(trained, **settings)
    if trained[0].device.type != "cuda":
        raise UsageError("model.optimizer.state_bits 8 needs a GPU; leave it out on the processor")
    try:
        import bitsandbytes
    except ImportError as error:
        raise UsageError("model.optimizer.state_bits 8 needs bitsandbytes: pip install bitsandbytes") from error
    return bitsandbytes.optim.AdamW8bit(trained, **settings)


def draw_dropout(batch: SRBatch, objective: ObjectiveConfig, types: Sequence[str], seed: int, step: int) -> SRBatch:
    """The batch with what each sample loses in this step. What a batch already says is kept: it is replayed.

    Args:
        batch: needs keys.
        objective: how often.
        types: names of the guidance types.
        seed: of the draws.
        step: of the optimizer; each has draws of its own.
    """

    def drawn(purpose: str, share: float) -> torch.Tensor:
        return keyed_uniform(seed, batch["keys"], purpose, step) < share

    lost = {
        "text_dropped": drawn("text_dropout", objective.text_dropout),
        "guidance_dropped": drawn("guidance_dropout", objective.guidance_dropout),
        "types_dropped": {name: drawn(f"type_dropout/{name}", objective.type_dropout or 0.0) for name in types},
    }
    return SRBatch(**{**lost, **batch})  # type: ignore[typeddict-item]


def without_dropped(batch: SRBatch, maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The maps, zero where a sample loses all of them or this one."""
    alone = batch["types_dropped"]
    kept = {name: ~(batch["guidance_dropped"] | alone[name]) for name in maps}
    return {name: value * kept[name].view(-1, 1, 1, 1).to(value) for name, value in maps.items()}


_DRAWN = ("degradation", "text_dropped", "guidance_dropped", "types_dropped")


def finite_mean(
    module: lightning.LightningModule, loss: torch.Tensor, batch: SRBatch, timesteps: torch.Tensor
) -> torch.Tensor:
    """The mean () of the losses (B,) of all processes, which must ask together.

    Raises:
        MegaSRError: one is not finite, here or in another process; names the images of this one, and writes
            nonfinite.pt with what was drawn for them (nonfinite.rank1.pt of the second process, and so on).
    """
    mean = loss.detach().mean()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    if torch.isfinite(mean):
        return mean
    if torch.isfinite(loss).all():
        raise MegaSRError(f"loss is not finite at step {module.global_step} in another process; see its line")
    rank = module.trainer.global_rank
    path = Path(module.trainer.default_root_dir) / ("nonfinite.pt" if rank == 0 else f"nonfinite.rank{rank}.pt")
    report = {"step": module.global_step, "keys": batch["keys"], "loss": loss.detach().cpu()}
    drawn = {name: batch.get(name) for name in _DRAWN}
    place = f"are in {path}"
    try:
        with open_whole(path) as file:
            torch.save(report | drawn | {"timesteps": timesteps.cpu()}, file)
    except RuntimeError as error:  # MegaSRError, or torch's for a full disk
        place = f"are lost: {first_line(error)}"
    bad = [key for key, value in zip(batch["keys"], loss, strict=True) if not torch.isfinite(value)]
    raise MegaSRError(
        f"loss is not finite at step {module.global_step} for {', '.join(bad)}; the weights were not changed, "
        f"the batch's keys and degradation {place}"
    )


def mean_without_repeated(trainer: lightning.Trainer | None, batch_index: int, losses: torch.Tensor) -> torch.Tensor:
    """What a validation batch adds to the mean over the set, in which every image counts once.

    Averaged over the batches of all processes, by their sizes, it is that mean. (Lightning cannot average over batches
    that count less than others: it divides the numbers of images by that of the processes, and rounds.)

    Args:
        trainer: that of the validation, which has one loader; None counts all.
        batch_index: number of the batch in this process.
        losses: (any, B).
    """
    loader = None if trainer is None else trainer.val_dataloaders
    sampler = getattr(loader, "sampler", None)
    if trainer is None or loader is None or not isinstance(sampler, torch.utils.data.DistributedSampler):
        return losses.mean()
    ranks, images = sampler.num_replicas, len(loader.dataset)
    first = batch_index * loader.batch_size * ranks + sampler.rank
    counted = len(range(first, min(images, first + losses.shape[1] * ranks), ranks))
    shown = min(trainer.num_val_batches[0] * loader.batch_size, len(sampler)) * ranks
    return losses[:, :counted].sum() / losses.numel() * (shown / min(shown, images))


class MegaSRModule(lightning.LightningModule):
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
        scale_factor: size of hq over size of lq.
        seed: of every draw in training and evaluation.

    Raises:
        UsageError: nothing would be trained, the sampler begins at timesteps that are not trained on, or a setting of
            the extractors would do nothing.
        MegaSRError: the prior or the vision tower is not on this machine, or init does not fit.
    """

    parts = FrozenParts()
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
        scale_factor: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if sampler.start_fraction > objective.timestep_fraction:
            raise UsageError(
                f"sampler.start_fraction {sampler.start_fraction} begins where nothing is trained: "
                f"objective.timestep_fraction is {objective.timestep_fraction}; lower the first or raise the second"
            )
        given: dict[str, Any] = {"prior": prior, "adapter": adapter, "objective": objective, "optimizer": optimizer}
        given |= {"sampler": sampler, "vision": vision, "extractors": extractors, "tagger": tagger, "init": init}
        given |= {"frozen_dtype": frozen_dtype, "compile": compile, "scale_factor": scale_factor, "seed": seed}
        # Plain data only, so that checkpoints load with weights_only=True.
        self.save_hyperparameters(
            {n: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for n, v in given.items()}
        )
        self.adapter, self.objective, self.optimizer, self.sampler = adapter, objective, optimizer, sampler
        self.scale_factor, self.seed = scale_factor, seed
        self.prior = self.parts.prior(prior)
        self.prior_fingerprint = self.prior.fingerprint()
        self.network = MegaSRNetwork(self.prior, adapter, seed)
        if not any(p.requires_grad for p in self.network.parameters()):
            raise UsageError(
                "model.adapter is empty: turn on controlnet, guidance, image or rca, else nothing is trained"
            )
        self.vision = self.parts.vision(vision)
        if tagger is not None and not adapter.text:
            raise UsageError("model.tagger would do nothing: model.adapter.text is off")
        self.tagger = self.parts.tagger(tagger)
        self.networks = self.parts.networks(extractors)
        self.networks.config.check_used(self.network.guidance)
        if objective.type_dropout is not None and not adapter.guidance:
            raise UsageError("model.objective.type_dropout would do nothing: model.adapter.guidance is empty")
        self.shown = shown_guidance(self.network.guidance, sampler.shown_guidance)
        self.alphas_cumprod: torch.Tensor
        self.register_buffer("alphas_cumprod", self.prior.scheduler.alphas_cumprod.clone(), persistent=False)
        if init is not None:
            initialise(self, init, self.prior_fingerprint)
        self.frozen_dtype, self.compiles = frozen_dtype, compile == "blocks"
        if self.compiles:
            self.network.compile_blocks()
        if frozen_dtype is not None:
            for frozen in (p for part in self.held_parts for p in part.parameters() if not p.requires_grad):
                frozen.data = frozen.data.to(getattr(torch, frozen_dtype))

    @property
    def held_parts(self) -> tuple[nn.Module, nn.Module]:
        """The parts whose frozen weights frozen_dtype is about; towers and extractors have dtypes of their own."""
        return self.prior, self.network

    def setup(self, stage: str) -> None:
        """Check that something casts between frozen and trained weights of different dtypes."""
        precision = self.trainer.precision
        if self.frozen_dtype is not None and precision != "bf16-mixed":
            raise UsageError(
                f"model.frozen_dtype {self.frozen_dtype} needs trainer.precision bf16-mixed, got {precision}"
            )

    def configure_model(self) -> None:
        """Let a strategy that spreads what is trained over the processes do so."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.spread(self.network)

    # Conditions ------------------------------------------------------------------------------------------------------

    def semantics(self, batch: SRBatch, lq_up: torch.Tensor, prompts: list[str]) -> Semantics:
        """Embed the prompts; take image tokens and representation from the batch, or from the vision tower.

        The tower is the tagger's eye as well (its zero-shot head tags), so its tokens are v1's representation.
        """
        tokens, representation = batch.get("image_tokens"), batch.get("representation")
        lacking = (self.adapter.image and tokens is None) or (self.adapter.rca and representation is None)
        if lacking and self.vision is not None:
            seen = self.vision(lq_up)
            tokens = seen if tokens is None else tokens
            representation = seen if representation is None else representation
        with torch.no_grad():
            text = self.prior.text_encoder(prompts)
        return Semantics(text, tokens, representation)

    def prompts(self, batch: SRBatch, lq_up: torch.Tensor, suffix: str = "") -> list[str]:
        """The tags of each sample and the suffix, or empty prompts when the adapter uses no text."""
        if not self.adapter.text:
            return [""] * len(batch["keys"])
        tags = batch.get("tags") or [""] * len(batch["keys"])
        if self.tagger is not None:
            tags = self.tagger(lq_up, batch.get("tags"))
        return [", ".join(part for part in (tag, suffix) if part) for tag in tags]

    def guidance_maps(self, batch: SRBatch) -> dict[str, torch.Tensor]:
        """The guidance maps that the adapter needs, from the batch or extracted."""
        return extract_guidance(batch, self.network.guidance, self.scale_factor, self.networks)

    # Training and validation loss ------------------------------------------------------------------------------------

    def training_step(self, batch: SRBatch, batch_index: int) -> dict[str, torch.Tensor]:
        """The mean loss, and what a callback may want to know of every sample: its loss, timestep and dropout."""
        keys, step = batch["keys"], self.global_step
        batch = draw_dropout(batch, self.objective, self.adapter.guidance, self.seed, step)
        lq_up = upsample_lq(batch["lq"], self.scale_factor)
        prompts, maps = self._drop_conditions(batch, lq_up)
        conditions = self.network.conditions(lq_up, self.semantics(batch, lq_up, prompts), maps)
        z0 = self._latents(batch)
        noise = keyed_normal(self.seed, keys, z0.shape[1:], "training_noise", step).to(z0)
        fractions = keyed_uniform(self.seed, keys, "timestep", step)
        timesteps = (fractions * self._trained_timesteps).long().to(z0.device)
        loss = self._loss(conditions, z0, noise, timesteps)
        self.log("train/loss", finite_mean(self, loss, batch, timesteps), prog_bar=True, batch_size=len(keys))
        dropped = batch["guidance_dropped"]
        return {"loss": loss.mean(), "sample_loss": loss.detach(), "timesteps": timesteps, "guidance_dropped": dropped}

    def validation_step(self, batch: SRBatch, batch_index: int) -> None:
        """Loss at fixed stratified timesteps with noise keyed by the image: the same for every model and epoch."""
        lq_up = upsample_lq(batch["lq"], self.scale_factor)
        semantics = self.semantics(batch, lq_up, self.prompts(batch, lq_up))
        conditions = self.network.conditions(lq_up, semantics, self.guidance_maps(batch))
        z0 = self._latents(batch)
        noise = keyed_normal(self.seed, batch["keys"], z0.shape[1:], "validation_noise").to(z0)
        strata = stratified_timesteps(self.objective.validation_timesteps, self._trained_timesteps)
        losses = [self._loss(conditions, z0, noise, t.expand(len(z0)).to(z0.device)) for t in strata]
        mean = mean_without_repeated(self._trainer, batch_index, torch.stack(losses))
        self.log("val/loss", mean, prog_bar=True, batch_size=len(z0), sync_dist=True)

    def _drop_conditions(self, batch: SRBatch, lq_up: torch.Tensor) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Prompts and maps of a training batch without what is dropped."""
        prompts = [
            "" if drop else prompt
            for drop, prompt in zip(batch["text_dropped"], self.prompts(batch, lq_up), strict=True)
        ]
        return prompts, without_dropped(batch, self.guidance_maps(batch))

    def _latents(self, batch: SRBatch) -> torch.Tensor:
        check_image(batch["hq"], "hq")
        with torch.no_grad():
            return batch["latents"] if "latents" in batch else self.prior.encode(batch["hq"]).float()

    def _loss(
        self, conditions: Conditions, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        def denoiser(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.network(z_t, t, conditions)

        return diffusion_loss(denoiser, self.prior.scheduler, z0, noise, timesteps)

    @property
    def _num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def _trained_timesteps(self) -> int:
        return max(1, round(self.objective.timestep_fraction * self._num_train_timesteps))

    # Sampling --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def restore(self, batch: SRBatch) -> torch.Tensor:
        """Lq -> sr (B, 3, H, W) float32 in [0, 1]. Noise is keyed by the image: batch size and order do not matter."""
        check_image(batch["lq"], "lq")
        lq_up = upsample_lq(batch["lq"], self.scale_factor)
        return restore(self, batch, lq_up, Wanted(self.sampler, self.shown, self.seed)).sr

    def test_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        """sr of the batch; the callback ProtocolMetrics measures it."""
        return self.restore(batch)

    # Optimizer and checkpoints ---------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        settings, optimizer = self.optimizer, build_optimizer(self.parameters(), self.optimizer)
        decay = settings.decay_share
        steps = self.trainer.estimated_stepping_batches if decay else float("inf")
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: trapezoid(step, steps, settings.warmup_steps, decay)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_norm(self.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = trained_state(self, checkpoint["state_dict"])
        checkpoint["prior_fingerprint"] = self.prior_fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        source = getattr(self._trainer, "ckpt_path", None) or "checkpoint"
        check_trained_state(self, checkpoint, self.prior_fingerprint, source)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            check_training_state(checkpoint, source)

    @classmethod
    def from_checkpoint(cls, path: str | Path, prior: str | None = None, **changes: Any) -> MegaSRModule:
        """Rebuild a module from a checkpoint, with the averaged weights when EMA was on.

        Args:
            path: a Lightning checkpoint of this module.
            prior: where the prior lies on this machine; None takes the source that was trained with.
            changes: constructor arguments to replace, such as sampler.

        Raises:
            MegaSRError: the file cannot be read, is not of this module, or belongs to another prior.
        """
        return build_from_checkpoint(cls, path, prior, changes)
