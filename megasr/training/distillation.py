"""PGFT: fine-tune extractors on lq towards their own answers on hq (2503.08096 v2)."""

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
from megasr.guidance.extract import load_network
from megasr.guidance.extractors import MapNetwork, Views
from megasr.guidance.registry import get_guidance
from megasr.images import upsample_lq
from megasr.pretraining.module import PretrainingModule
from megasr.semantics.clip import save_clip
from megasr.semantics.taggers import ClipTagger
from megasr.semantics.tags import TaggerConfig, build_tagger

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Encoded = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]  # representation, raw outputs
CLIP = "clip"


def binary_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean KL divergence of the student's probabilities from the teacher's: logits of edges or of tags (2311.16518)."""
    target = teacher.sigmoid()
    cross, own = (F.binary_cross_entropy_with_logits(logits, target) for logits in (student, teacher))
    return cross - own


def class_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL divergence of the student's classes from the teacher's, logits (B, K, ...); mean per pixel."""
    per_class = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
    return per_class.sum(1).mean()


def segment_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Of M-LSD's output (B, 5, h, w): divergence of the centres' probabilities, and the mean absolute error of the ends
    in shares of the map's height, weighted by the teacher's probability."""
    weight = teacher[:, :1].sigmoid()
    ends = (student[:, 1:] - teacher[:, 1:]).abs() / teacher.shape[-2]
    return binary_divergence(student[:, :1], teacher[:, :1]) + (weight * ends).sum() / (4 * weight.sum())


def relative_depth_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Scale-and-shift-invariant mean absolute error of inverse depth (B, 1, h, w) (MiDaS, 1907.01341, section 5)."""
    return F.l1_loss(_normalised(student), _normalised(teacher))


def _normalised(inverse: torch.Tensor) -> torch.Tensor:
    """Subtract every image's median, divide by its mean absolute deviation."""
    flat = inverse.flatten(1)
    centred = flat - flat.median(dim=1, keepdim=True).values
    return centred / centred.abs().mean(dim=1, keepdim=True).clamp(min=1e-6)


def representation_loss(student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean over the feature maps of their mean squared errors, each relative to the teacher's mean square."""
    relative = [
        F.mse_loss(own, target) / target.square().mean().clamp(min=1e-12)
        for own, target in zip(student, teacher, strict=True)
    ]
    return torch.stack(relative).mean()


class MapStudent(nn.Module):
    """An extractor of guidance maps, to be tuned.

    Args:
        guidance: the guidance type that names the loader.
        source: of the weights.

    Attributes:
        network: what is loaded and exported.
        tuned: the part of it that is trained.
        outputs: output name -> its loss against the teacher's.
    """

    def __init__(self, guidance: str, source: str) -> None:
        super().__init__()
        self.network: MapNetwork = load_network(get_guidance(guidance), source)
        losses: dict[str, Loss] = {
            "hed": binary_divergence, "pidinet": binary_divergence, "sketch": binary_divergence, "normal": F.l1_loss,
            "depth": relative_depth_loss if self.network.relative_depth else F.l1_loss,
            "segmentation": class_divergence, "mlsd": segment_loss,
        }  # fmt: skip
        self.outputs = {name: losses[name] for name in self.network.outputs}

    @property
    def tuned(self) -> nn.Module:
        return self.network

    def encode(self, images: torch.Tensor, with_outputs: bool) -> Encoded:
        """(B, 3, H, W) in [0, 1] -> the representation, and the raw outputs if asked for."""
        representation = self.network.encode(Views(images))
        return representation, self.network.decode(representation, self.network.outputs) if with_outputs else {}

    def answers(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the network is used for, by name: maps in [0, 1], tokens, probabilities of tags."""
        return self.network(Views(images), self.network.gives)

    def export(self, folder: Path) -> None:
        """Write the network in the format that it was loaded from."""
        self.network.export(folder)


class ClipStudent(nn.Module):
    """A CLIP's vision tower, as MapStudent: its patch tokens are the image tokens, its zero-shot head is the tagger.

    Args:
        source: `tiny` or a folder in open_clip's local-dir format.
        vocabulary: of the zero-shot head; see megasr.semantics.tags.
    """

    def __init__(self, source: str, vocabulary: str) -> None:
        super().__init__()
        tagger = build_tagger(TaggerConfig("clip", model=source, vocabulary=vocabulary))
        assert isinstance(tagger, ClipTagger)
        self.tagger, self.network = tagger, tagger.clip
        # A CLIP with a softmax loss gives no probability of a single text: its tags are one distribution.
        self.outputs: dict[str, Loss] = {"tags": binary_divergence if tagger.is_sigmoid else class_divergence}

    @property
    def tuned(self) -> nn.Module:
        return self.tagger.clip.visual

    def encode(self, images: torch.Tensor, with_outputs: bool) -> Encoded:
        tokens, logits = self.tagger.analyse(images)
        return (tokens,), {"tags": logits} if with_outputs else {}

    def answers(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens, logits = self.tagger.analyse(images)
        return {"tokens": tokens, "tags": self.tagger.probabilities(logits)}

    def export(self, folder: Path) -> None:
        save_clip(self.network, folder)


Student = MapStudent | ClipStudent


def answer_error(name: str, answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Error of an answer against the target, (B,).

    Segmentation: share of wrong pixels. Tokens: squared error relative to their square. Edges: KL divergence in nats
    per pixel of probabilities clamped to [1e-4, 1 - 1e-4] (a mean absolute error would praise a map without edges).
    Others: mean absolute error.
    """
    if name in ("hed", "pidinet", "sketch"):
        q, p = (probability.clamp(1e-4, 1 - 1e-4) for probability in (answer, target))
        return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).flatten(1).mean(1)
    if name == "segmentation":
        return (answer != target).any(1).float().mean((1, 2))
    if name == "tokens":
        return (answer - target).square().flatten(1).sum(1) / target.square().flatten(1).sum(1)
    return (answer - target).abs().flatten(1).mean(1)


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
    """Tune an extractor for degraded images; its export loads wherever the plain one does.

    Args:
        network: `clip` (vision tower and tagger), or the guidance type that names the loader: hed, pidinet, sketch,
            mlsd, depth, segmentation. A network that makes several maps is tuned for all of them.
        source: of its weights, as in model.extractors.sources and model.vision.
        strategy: match the features of the encoder (`representation`), the outputs (`output`), or `both`.
        representation_weight: of the features beside the outputs; used by `both`.
        output_weights: output -> weight of its loss; 1 for the others.
        lora_rank: rank of LoRA (2106.09685) in every linear layer and convolution; 0 trains all weights.
        vocabulary: of clip's tagger, see megasr.semantics.tags; the tiny CLIP's own when empty.
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
        # In a list, so that no checkpoint holds its weights twice.
        self._lora = [_add_lora(self.student.tuned, lora_rank, self.seed)] if lora_rank else []
        if not lora_rank:
            self.student.tuned.requires_grad_(True)
        self._freeze_unused()

    def train(self, mode: bool = True) -> DistillationModule:
        """The student stays in evaluation mode: no dropout, no new batch statistics."""
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
        """Error of the answers on lq against the teacher's on hq: the student's, and the teacher's own."""
        lq_up, targets = lq_up_of(batch), self.teacher.answers(batch["hq"])
        for label, network in (("error", self.student), ("error_before", self.teacher)):
            answers = network.answers(lq_up)
            errors = {f"val/{n}_{label}": answer_error(n, answers[n], targets[n]).mean() for n in answers}
            self.log_dict(errors, prog_bar=label == "error", batch_size=len(lq_up), sync_dist=True)

    def _losses(self, hq: torch.Tensor, lq_up: torch.Tensor) -> dict[str, torch.Tensor]:
        with_outputs = self.strategy != "representation"
        with torch.no_grad():
            target, target_outputs = self.teacher.encode(hq, with_outputs)
        own, outputs = self.student.encode(lq_up, with_outputs)
        losses = {} if self.strategy == "output" else {"representation": representation_loss(own, target)}
        if with_outputs:
            losses |= {name: loss(outputs[name], target_outputs[name]) for name, loss in self.student.outputs.items()}
        return losses

    def _weight(self, name: str) -> float:
        if name == "representation":
            return self.representation_weight if self.strategy == "both" else 1.0
        return self.output_weights.get(name, 1.0)

    def _freeze_unused(self) -> None:
        """Freeze parameters without a gradient (heads, when only features are matched): DDP would wait for them."""
        trained = [p for p in self.student.parameters() if p.requires_grad]
        grey = torch.full((1, 3, _PROBE_PX, _PROBE_PX), 0.5)
        losses = self._losses(grey, grey * 0.9)
        gradients = torch.autograd.grad(sum(losses.values(), torch.zeros(())), trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def export(self, folder: Path) -> None:
        """Write the tuned network, LoRA merged into its weights, in the format that it was loaded from."""
        student, loras = copy.deepcopy((self.student, self._lora))
        for lora in loras:
            lora.merge_and_unload()
        student.export(folder)


def lq_up_of(batch: SRBatch) -> torch.Tensor:
    """lq at the size of hq.

    Raises:
        UsageError: the batch has no lq, or one of the size of hq: the data degrade nothing.
    """
    if "lq" not in batch or batch["lq"].shape == batch["hq"].shape:
        raise UsageError("fine-tuning for lq needs lq: set data.degradation and a data.scale_factor above 1")
    return upsample_lq(batch["lq"], batch["hq"].shape[-1] // batch["lq"].shape[-1])


def _add_lora(network: nn.Module, rank: int, seed: int) -> Any:
    """Put LoRA layers into a network, in place, freeze all other weights, and return peft's LoraModel."""
    from peft import LoraConfig, LoraModel

    layers = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    attention = [name for name, part in network.named_modules() if isinstance(part, nn.MultiheadAttention)]
    targets = [
        name
        for name, part in network.named_modules()
        if isinstance(part, layers)
        and getattr(part, "groups", 1) == 1  # depthwise layers have next to no weights, and no low rank
        and getattr(part, "dilation", (1, 1)) == (1, 1)  # peft's layers do not know of it
        and not any(name.startswith(f"{outer}.") for outer in attention)
    ]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoraModel(network, config, "default")
