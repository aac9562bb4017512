"""The metrics of the fixed images. What cannot be measured is left out: no training ends because of a number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from megasr.batch import SRBatch
from megasr.errors import MegaSRError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.result import Row
from megasr.evaluation.spec import Protocol


class FixedScores:
    """Measures the fixed images, every metric by itself.

    Metrics whose weights are missing are left out, and those that cannot be taken of any of the images themselves,
    which is said: their formulas need larger ones.

    Args:
        protocol: how it is measured. Its distances of sets are not taken.
        fixed: batches with (B, 3, H, W) hq in [0, 1]; without hq nothing can be tried before there is a sr.
    """

    def __init__(self, protocol: Protocol, fixed: Sequence[SRBatch]) -> None:
        has_hq = "hq" in fixed[0]
        names = [spec.name for spec in protocol.metrics if not spec.of_set and (has_hq or not spec.needs_hq)]
        alone = {name: Evaluator(protocol, metrics=[name], missing="skip", has_hq=has_hq) for name in names}
        self._evaluators = {name: evaluator for name, evaluator in alone.items() if evaluator.metric_names}
        self._said: set[str] = set()
        for name in self.metric_names if has_hq else ():
            found: dict[str, float] = {}
            originals = ((batch["hq"].float(), batch["keys"]) for batch in fixed)
            errors = [e for hq, keys in originals for e in self._measure(name, hq, hq, keys, found)]
            if not found:
                self._say(name, errors[0])
                del self._evaluators[name]

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that are taken, in the order of the protocol."""
        return tuple(self._evaluators)

    def rows(self, sr: torch.Tensor, batch: SRBatch) -> list[Row]:
        """One row per image of a batch, with the numbers that can be taken of (B, 3, H, W) sr."""
        rows: dict[str, Row] = {key: {"key": key} for key in batch["keys"]}
        for name in self.metric_names:
            found: dict[str, float] = {}
            for error in self._measure(name, sr, _hq(batch), batch["keys"], found):
                self._say(name, error)
            for key, value in found.items():
                rows[key][name] = value
        return list(rows.values())

    def means(self, rows: Sequence[Row]) -> dict[str, float]:
        """Mean of every metric over the rows that have it."""
        values = {name: [row[name] for row in rows if name in row] for name in self.metric_names}
        return {name: math.fsum(got) / len(got) for name, got in values.items() if got}

    def _measure(
        self, name: str, sr: torch.Tensor, hq: torch.Tensor | None, keys: list[str], found: dict[str, float]
    ) -> list[MegaSRError]:
        """Put key -> value into `found`; return why values are lacking."""
        try:
            found |= {row["key"]: row[name] for row in self._evaluators[name].rows(sr, hq, keys)}
        except MegaSRError as error:
            if len(keys) == 1:
                return [error]
            parts = ((slice(i, i + 1), [key]) for i, key in enumerate(keys))
            return [
                error
                for part, key in parts
                for error in self._measure(name, sr[part], None if hq is None else hq[part], key, found)
            ]
        return []

    def _say(self, name: str, error: MegaSRError) -> None:
        if self._said.isdisjoint({name, str(error)}):
            rank_zero_info(f"the monitor goes on without {name} where it cannot be taken: {error}")
        self._said |= {name, str(error)}


def _hq(batch: SRBatch) -> torch.Tensor | None:
    return batch["hq"].float().cpu() if "hq" in batch else None
