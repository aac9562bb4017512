"""The held-out images of a study, made once for all runs of a process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ablations.plan import Components, build
from megasr.batch import SRBatch

_KEPT_BYTES = 2**28  # a study's tiny set; thousands of photographs are read anew for every run


class HeldOut:
    """Batches of the evaluation set of a `data` section, on a device; few images are kept for the next run.

    Rendering scenes, reading photographs and degrading them is the same for all runs of a study: the evaluation set
    does not depend on the seed. Nothing may write into the batches.
    """

    def __init__(self) -> None:
        self._of, self._kept = "", list[SRBatch]()

    def batches(self, data: Mapping[str, Any], components: Components, device: torch.device) -> Iterator[SRBatch]:
        """The batches, in the same order every time.

        Args:
            data: resolved section.
            components: classes that it builds.
            device: where the tensors go.
        """
        of = json.dumps([data, str(device)], sort_keys=True)
        if of == self._of:
            yield from self._kept
            return
        kept, size = list[SRBatch](), 0
        for batch in self._make(data, components, device):
            size += sum(v.numel() * v.element_size() for v in batch.values() if isinstance(v, torch.Tensor))
            kept.append(batch)
            if size > _KEPT_BYTES:
                kept = []
            yield batch
        if size <= _KEPT_BYTES:
            self._of, self._kept = of, kept

    def _make(self, section: Mapping[str, Any], components: Components, device: torch.device) -> Iterator[SRBatch]:
        data = build(components, {"data": section}).data
        data.setup("validate")
        for batch in data.val_dataloader():
            yield data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)
