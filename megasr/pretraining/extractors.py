"""Training of the embedded extractors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.guidance.edges import load_hed
from megasr.guidance.extractors import Views
from megasr.guidance.tiny import build_tiny
from megasr.pretraining.module import PretrainingModule

TRUTH = {
    "hed": "oracle_edge",
    "depth": "oracle_depth",
    "normal": "oracle_normal",
    "segmentation": "oracle_segmentation",
}
# Makes the four losses about equal after the first steps.
_WEIGHTS = {"hed": 2.0, "depth": 5.0, "normal": 2.0, "segmentation": 0.5}


class ExtractorModule(PretrainingModule):
    """Train TinyMaps on hq and the exact maps of rendered scenes (SceneDataModule, WorldDataModule with `maps`).

    Args:
        classes: names of the segmentation's classes, in the order of `colors`.
        colors: one RGB triple of 0 to 255 per class, as the data draw them.
        edge_teacher: HED network (megasr.guidance.edges.load_hed) that makes the edges of photographs, whose maps are
            unknown; None trains nothing on photographs.
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the image.
        blocks: residual blocks at each of these.
        pyramid_width: channels of the feature pyramid.
        settings: see PretrainingModule.
    """

    def __init__(
        self,
        classes: Sequence[str],
        colors: Sequence[Sequence[float]],
        edge_teacher: str | None = None,
        widths: Sequence[int] = (24, 48, 96, 128),
        blocks: Sequence[int] = (1, 2, 2, 2),
        pyramid_width: int = 48,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.save_hyperparameters()
        sizes = {"widths": tuple(widths), "blocks": tuple(blocks), "pyramid_width": pyramid_width}
        shades = [[value / 255 for value in color] for color in colors]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = build_tiny(classes, shades, **sizes)
        # In a list, so that no checkpoint holds it.
        self._teachers = [] if edge_teacher is None else [load_hed(edge_teacher)]

    def setup(self, stage: str) -> None:
        """Move the teacher to the student's device."""
        self._teachers = [teacher.to(self.device) for teacher in self._teachers]

    def training_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor | None:
        """The weighted sum of the losses of all maps; None, which trains nothing, when the batch has no known map."""
        losses = self._losses(batch)
        if not losses:
            return None
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, prog_bar=True)
        loss = torch.stack([_WEIGHTS[name] * value for name, value in losses.items()]).sum()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: SRBatch, batch_index: int) -> None:
        """The same losses on scenes that training never draws."""
        losses = {f"val/{name}": value for name, value in self._losses(batch).items()}
        self.log_dict(losses, prog_bar=True, batch_size=len(batch["keys"]), sync_dist=True)

    def _losses(self, batch: SRBatch) -> dict[str, torch.Tensor]:
        maps = batch.get("maps", {})
        absent = sorted(set(TRUTH.values()) - set(maps))
        if absent:
            raise UsageError(f"the batch lacks {', '.join(absent)}: SceneDataModule and WorldDataModule have them")
        truth = {name: maps[key] for name, key in TRUTH.items()}
        photographs = truth["depth"].isnan().flatten(1).any(1)
        if photographs.any():
            truth["hed"] = truth["hed"].clone()
            truth["hed"][photographs] = self._edges(batch["hq"][photographs])
        raw = self.network.decode(self.network.encode(Views(batch["hq"])), self.network.outputs)
        losses = {}
        for name, exact in truth.items():
            known = exact.isfinite().flatten(1).all(1)
            if known.any():
                losses[name] = exact_loss(name, raw[name][known], self._at_size_of(raw[name], exact[known], name))
        return losses

    @torch.no_grad()
    def _edges(self, photographs: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, 1, H, W) in [0, 1]; NaN without a teacher."""
        if not self._teachers:
            return torch.full_like(photographs[:, :1], torch.nan)
        edges: torch.Tensor = self._teachers[0](Views(photographs), ("hed",))["hed"]
        return edges

    def _at_size_of(self, raw: torch.Tensor, exact: torch.Tensor, name: str) -> torch.Tensor:
        if name == "segmentation":
            return self.network.classes_of(F.interpolate(exact, raw.shape[-2:], mode="nearest-exact"))
        return F.interpolate(exact, raw.shape[-2:], mode="area")

    def export(self, folder: Path) -> None:
        """Write what load_tiny reads."""
        self.network.export(folder)


def exact_loss(name: str, raw: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The loss of a map against the truth of its size.

    Args:
        name: of the map: hed, depth, normal or segmentation.
        raw: raw output (see megasr.guidance.extractors).
        truth: edges and inverse depth in [0, 1], normals as (n + 1) / 2, class ids (B, h, w).
    """
    if name == "hed":
        return F.binary_cross_entropy_with_logits(raw, truth)
    if name == "segmentation":
        return F.cross_entropy(raw, truth)
    return F.l1_loss(raw, truth * 2 - 1 if name == "normal" else truth)
