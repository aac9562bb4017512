"""What restoring takes of memory, known before anything is restored: the pipeline itself, run once without bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from megasr.batch import SRBatch
from megasr.errors import MegaSRError
from megasr.guidance.registry import GuidanceType
from megasr.inference.pipeline import MegaSRPipeline
from megasr.inference.restoration import GROUPS_KEPT, Restored, Wanted
from megasr.inference.tiling import Box, Grid, Tiling
from megasr.training.memory_plan import FakeAnswers, LiveBytes, load_extractors
from megasr.training.memory_setup import build_weightless, cast, without_bytes


class _FewGroups(Grid):
    """As many tiles as are kept and some that are not: of a large image thousands would follow that take no more."""

    @property
    def groups(self) -> list[list[Box]]:
        return super().groups[: GROUPS_KEPT + 1]


class _FewTiles(Tiling):
    def grid(self, height: int, width: int, multiple: int) -> Grid:
        return _FewGroups(**vars(super().grid(height, width, multiple)))


class _Weightless(MegaSRPipeline):
    """Weights that cannot be moved, and images that hold no values by which they could be told apart."""

    def to(self, *unused: Any) -> MegaSRPipeline:
        return self

    def _restore(self, lq: torch.Tensor, batch: SRBatch, scale: float, wanted: Wanted) -> Restored:
        shown = {own: source and _without_formula(source) for own, source in wanted.shown.items()}
        tiling = wanted.tiling and _FewTiles(**vars(wanted.tiling))
        return super()._restore(lq, batch, scale, replace(wanted, shown=shown, tiling=tiling))

    def _identify(self, lq: torch.Tensor, about: str) -> str:
        return about


def restoring_bytes(pipeline: MegaSRPipeline, size: Sequence[int], count: int = 1, **options: Any) -> int:
    """The most bytes that live at once while photographs are restored, those of the weights included.

    What happens inside one operation (a convolution's workspace) and what an allocator keeps are not counted.

    Args:
        pipeline: whose adapter, prior and dtype.
        size: height and width of the photographs in px.
        count: of photographs of this size, restored together.
        options: of the pipeline's call. Steps and solver are left out: they do not change the memory.

    Raises:
        MegaSRError: this adapter cannot be run without bytes.
    """
    options = {name: value for name, value in options.items() if name not in ("preset", "num_inference_steps")}
    tracker = LiveBytes()
    with without_bytes():
        with FakeAnswers(truth=False):
            weightless = _weightless(pipeline)
        images = list(torch.zeros(count, 3, *size))
        networks = load_extractors(weightless.module, {"lq": images[0]})
        for tensor in _tensors(weightless.module, *networks):
            tracker.see(tensor, "frozen")
        try:
            with FakeAnswers(truth=True), tracker:
                weightless(images, num_inference_steps=1, output_type="pt", **options)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise MegaSRError(f"the memory is not known: {str(error).splitlines()[0]}") from error
    return max(sum(row[1:]) for row in tracker.rows)


def _weightless(pipeline: MegaSRPipeline) -> MegaSRPipeline:
    module, _ = build_weightless(pipeline.module.hparams)
    module.sampler = replace(pipeline.module.sampler, solver=None)
    if pipeline.dtype is not None:
        cast(module.prior, pipeline.dtype)
        cast(module.network, pipeline.dtype)
    weightless = _Weightless(module)
    weightless.dtype = pipeline.dtype
    return weightless


def _without_formula(guidance: GuidanceType) -> GuidanceType:
    """Formulas may be numpy's, which has nothing to compute with."""

    def zeros(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        return image.new_zeros(len(image), guidance.channels, *image.shape[-2:])

    return guidance if guidance.formula is None else replace(guidance, formula=zeros)


def _tensors(*parts: nn.Module) -> list[torch.Tensor]:
    return [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
