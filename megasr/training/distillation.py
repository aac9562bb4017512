"""Prior-guided fine-tuning (PGFT, 2503.08096): extractors that were trained on clean images learn to see lq.

A student looks at lq, its frozen teacher, which is the same network as it came, at hq of the same batch. The paper
names two strategies and specifies neither; both are here. The nearest public relative is SeeSR's DAPE (2311.16518):
LoRA of rank 8, mean squared error of the features plus cross-entropy of the tags, one to one, AdamW at 1e-4.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.images import upsample_lq
from megasr.training.distillation_losses import representation_loss
from megasr.training.pretraining.module import PretrainingModule
from megasr.training.students import answer_error, load_student

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
