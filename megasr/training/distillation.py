"""PGFT: students learn from frozen teachers on lq (2503.08096 v2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.guidance.extractors import MapNetwork, Views
from megasr.guidance.registry import get_guidance
from megasr.guidance.sources import load_network
from megasr.images import upsample_lq
from megasr.pretraining.module import PretrainingModule
from megasr.semantics.clip import save_clip
from megasr.semantics.taggers import ClipTagger
from megasr.semantics.tags import TaggerConfig, build_tagger

_SURE = 1e-4


def edge_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the student's edge probabilities from the teacher's, of logits (B, 1, h, w)."""
    return _bernoulli_divergence(student, teacher)


def _bernoulli_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy without the teacher's own entropy: nothing is left when both agree."""
    goal = teacher.sigmoid()
    cross, own = (F.binary_cross_entropy_with_logits(logits, goal) for logits in (student, teacher))
    return cross - own


def edge_divergence(found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The same of every pixel, of maps of probabilities in [0, 1]; what is surer than 1 in 10,000 is taken as that."""
    q, p = (probability.clamp(_SURE, 1 - _SURE) for probability in (found, right))
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def relative_depth_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Scale-and-shift-invariant mean absolute error of inverse depth (B, 1, h, w) (MiDaS, 1907.01341, section 5)."""
    return F.l1_loss(_normalised(student), _normalised(teacher))


def _normalised(inverse: torch.Tensor) -> torch.Tensor:
    """Shift and scale of every image taken out: its median and mean absolute deviation."""
    flat = inverse.flatten(1)
    centred = flat - flat.median(dim=1, keepdim=True).values
    return centred / centred.abs().mean(dim=1, keepdim=True).clamp(min=1e-6)


def absolute_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean absolute error: of normals, and of inverse depth whose scale means something."""
    return F.l1_loss(student, teacher)


def class_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the student's classes from the teacher's, logits (B, K, ...); mean per pixel."""
    per_class = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
    return per_class.sum(1).mean()


def tag_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The same of tag logits (B, T), every tag for itself (as DAPE's, 2311.16518)."""
    return _bernoulli_divergence(student, teacher)


def representation_loss(student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean squared error of every feature map, each in units of the teacher's own mean square, then the mean of all.

    The unit makes coarse and fine features, and networks of other scales, count alike.
    """
    relative = [
        F.mse_loss(own, goal) / goal.square().mean().clamp(min=1e-12)
        for own, goal in zip(student, teacher, strict=True)
    ]
    return torch.stack(relative).mean()


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Seen = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]  # representation, raw outputs
CLIP = "clip"


class Student(nn.Module):
    """A network to tune.

    Attributes:
        network: what is loaded and exported.
        outputs: output name -> its loss against the teacher's.
    """

    network: nn.Module
    outputs: dict[str, Loss]

    @property
    def tuned(self) -> nn.Module:
        """The part of the network that is trained."""
        return self.network

    def look(self, images: torch.Tensor, wants_outputs: bool) -> Seen:
        """(B, 3, H, W) in [0, 1] -> the representation, and the raw outputs when they are wanted."""
        raise NotImplementedError

    def answers(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is used of the network, by name: maps in [0, 1], tokens, probabilities of tags."""
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        """Write the network in the format that it was loaded from."""
        raise NotImplementedError


class MapStudent(Student):
    """A network that makes guidance maps.

    Args:
        guidance: the guidance type that names the loader.
        source: of the weights.
    """

    def __init__(self, guidance: str, source: str) -> None:
        super().__init__()
        self.network: MapNetwork = load_network(get_guidance(guidance), source)
        depth = relative_depth_loss if self.network.relative_depth else absolute_loss
        known: dict[str, Loss] = {
            "hed": edge_loss, "sketch": edge_loss, "depth": depth,
            "normal": absolute_loss, "segmentation": class_loss,
        }  # fmt: skip
        self.outputs = {name: known[name] for name in self.network.outputs}

    def look(self, images: torch.Tensor, wants_outputs: bool) -> Seen:
        representation = self.network.encode(Views(images))
        return representation, self.network.decode(representation, self.network.outputs) if wants_outputs else {}

    def answers(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.network(Views(images), self.network.gives)

    def export(self, folder: Path) -> None:
        self.network.export(folder)


class ClipStudent(Student):
    """A CLIP's vision tower: its patch tokens are the image tokens, its zero-shot head is the tagger.

    Args:
        source: `tiny` or a folder in open_clip's local-dir format.
        vocabulary: of the zero-shot head; see megasr.semantics.tags.
    """

    def __init__(self, source: str, vocabulary: str) -> None:
        super().__init__()
        tagger = build_tagger(TaggerConfig("clip", model=source, vocabulary=vocabulary))
        assert isinstance(tagger, ClipTagger)
        self.tagger, self.network = tagger, tagger.clip
        # A CLIP that was trained to compare texts cannot say how true one is: its tags are a distribution.
        self.outputs = {"tags": tag_loss if tagger.is_sigmoid else class_loss}

    @property
    def tuned(self) -> nn.Module:
        return self.tagger.clip.visual

    def look(self, images: torch.Tensor, wants_outputs: bool) -> Seen:
        tokens, logits = self.tagger.analyse(images)
        return (tokens,), {"tags": logits} if wants_outputs else {}

    def answers(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens, logits = self.tagger.analyse(images)
        return {"tokens": tokens, "tags": self.tagger.probabilities(logits)}

    def export(self, folder: Path) -> None:
        save_clip(self.network, folder)


def answer_error(name: str, found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """How wrong an answer is, (B,).

    The share of pixels of another class; the squared error of tokens in units of their own square; of edges the
    Kullback-Leibler divergence from the right probabilities in nats per pixel (a mean absolute error would praise a map
    without edges, as most pixels have none); else the mean absolute error.
    """
    if name in ("hed", "sketch"):
        return edge_divergence(found, right).flatten(1).mean(1)
    if name == "segmentation":
        return (found != right).any(1).float().mean((1, 2))
    if name == "tokens":
        return (found - right).square().flatten(1).sum(1) / right.square().flatten(1).sum(1)
    return (found - right).abs().flatten(1).mean(1)


def load_student(network: str, source: str, vocabulary: str) -> Student:
    """`clip`, or a guidance type, with the weights of a source.

    Raises:
        UsageError: a vocabulary without a tagger.
        MegaSRError: the weights are missing or damaged.
    """
    if network == CLIP:
        return ClipStudent(source, vocabulary or "tiny")
    if vocabulary:
        raise UsageError(f"model.vocabulary is for the network clip; {network} has no words")
    return MapStudent(network, source)


Strategy = Literal["representation", "output", "both"]
_PROBE_PX = 64


class DistillationModule(PretrainingModule):
    """Tune an extractor for degraded images; what is exported loads wherever the plain one does.

    Args:
        network: `clip` (its vision tower, and the tagger on it), or the guidance type that names the loader: hed,
            sketch, depth, segmentation. A network that makes several maps is tuned for all of them.
        source: of its weights, as model.extractors.sources and model.vision name them.
        strategy: `representation` matches the features of the encoder, `output` what comes out, `both` the two.
        representation_weight: weight of the features beside the outputs; used by `both`.
        output_weights: output -> weight of its loss; 1 for what is not named.
        lora_rank: rank of LoRA (2106.09685) in every linear layer and convolution; 0 trains all weights.
        vocabulary: words of clip's tagger, see megasr.semantics.tags; the tiny CLIP's own when empty.
        settings: see PretrainingModule.

    Raises:
        UsageError: a setting that would do nothing.
        MegaSRError: the weights are missing or damaged.
    """

    def __init__(
        self,
        network: str = "hed",
        source: str = "tiny",
        strategy: Strategy = "both",
        representation_weight: float = 1.0,
        output_weights: Mapping[str, float] | None = None,
        lora_rank: int = 0,
        vocabulary: str = "",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.save_hyperparameters()
        self.student = load_student(network, source, vocabulary)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.strategy, self.representation_weight = strategy, representation_weight
        self.output_weights = dict(output_weights or {})
        unknown = sorted(set(self.output_weights) - set(self.student.outputs))
        if unknown or (strategy == "representation" and self.output_weights):
            raise UsageError(
                f"model.output_weights: {', '.join(unknown or self.output_weights)} would do nothing; "
                f"{network} has {', '.join(self.student.outputs)}, and strategy {strategy!r} uses "
                f"{'none' if strategy == 'representation' else 'these'}"
            )
        if lora_rank < 0:
            raise UsageError(f"model.lora_rank must not be negative, got {lora_rank}")
        self._lora = _add_lora(self.student.tuned, lora_rank, self.seed) if lora_rank else None
        if self._lora is None:
            self.student.tuned.requires_grad_(True)
        self._freeze_what_is_not_reached()

    def train(self, mode: bool = True) -> DistillationModule:
        """The student keeps the behaviour that it is used with: no dropout, no new statistics of batches."""
        return super().train(False)

    def training_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        """The weighted sum of the losses."""
        losses = self._losses(batch["hq"], lq_up_of(batch))
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, prog_bar=True)
        loss = torch.stack([self._weight(name) * value for name, value in losses.items()]).sum()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: SRBatch, batch_index: int) -> None:
        """Error of what is used, of lq against the teacher's of hq: by the student, and by the teacher on lq."""
        lq_up, right = lq_up_of(batch), self.teacher.answers(batch["hq"])
        for label, network in (("error", self.student), ("error_before", self.teacher)):
            found = network.answers(lq_up)
            errors = {f"val/{name}_{label}": answer_error(name, found[name], right[name]).mean() for name in found}
            self.log_dict(errors, prog_bar=label == "error", batch_size=len(lq_up), sync_dist=True)

    def _losses(self, hq: torch.Tensor, lq_up: torch.Tensor) -> dict[str, torch.Tensor]:
        wants_outputs = self.strategy != "representation"
        with torch.no_grad():
            goal, right = self.teacher.look(hq, wants_outputs)
        own, found = self.student.look(lq_up, wants_outputs)
        losses = {} if self.strategy == "output" else {"representation": representation_loss(own, goal)}
        if wants_outputs:
            losses |= {name: loss(found[name], right[name]) for name, loss in self.student.outputs.items()}
        return losses

    def _weight(self, name: str) -> float:
        if name == "representation":
            return self.representation_weight if self.strategy == "both" else 1.0
        return self.output_weights.get(name, 1.0)

    def _freeze_what_is_not_reached(self) -> None:
        """Parameters without a gradient would make DDP wait for them: the heads, when only features are matched."""
        trained = [p for p in self.student.parameters() if p.requires_grad]
        grey = torch.full((1, 3, _PROBE_PX, _PROBE_PX), 0.5)
        losses = self._losses(grey, grey * 0.9)
        gradients = torch.autograd.grad(sum(losses.values(), torch.zeros(())), trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def export(self, folder: Path) -> None:
        """Write the tuned network, LoRA merged into its weights, in the format that it was loaded from."""
        if self._lora is None:
            return self.student.export(folder)
        tuned = copy.deepcopy(self.student)
        _merge_lora(tuned.tuned)
        return tuned.export(folder)


def lq_up_of(batch: SRBatch) -> torch.Tensor:
    """lq at the size of hq.

    Raises:
        UsageError: the batch has no lq, or one of the size of hq: the data degrade nothing.
    """
    if "lq" not in batch or batch["lq"].shape == batch["hq"].shape:
        raise UsageError("fine-tuning for lq needs lq: set data.degradation and a data.scale_factor above 1")
    return upsample_lq(batch["lq"], batch["hq"].shape[-1] // batch["lq"].shape[-1])


def _add_lora(network: nn.Module, rank: int, seed: int) -> Any:
    """Put LoRA layers into a network, in place; all other weights are frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    attention = [name for name, part in network.named_modules() if isinstance(part, nn.MultiheadAttention)]
    targets = [
        name
        for name, part in network.named_modules()
        if isinstance(part, layers)
        and getattr(part, "groups", 1) == 1  # depthwise layers have next to no weights, and no low rank
        and not any(name.startswith(f"{outer}.") for outer in attention)
    ]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return inject_adapter_in_model(config, network)


def _merge_lora(network: nn.Module) -> None:
    """Add what LoRA has learnt to the weights and take its layers out, in place."""
    from peft.tuners.lora.layer import MultiheadAttention
    from peft.tuners.tuners_utils import BaseTunerLayer

    done: list[str] = []
    for name, layer in list(network.named_modules()):
        # What lies inside a layer of attention goes with it.
        if not isinstance(layer, BaseTunerLayer) or any(name.startswith(f"{outer}.") for outer in done):
            continue
        done.append(name)
        if isinstance(layer, MultiheadAttention):
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            layer.merge()
            plain = layer.get_base_layer()
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, plain)
