"""Published numbers, each under the protocol it was taken with: megasr/assets/published.csv, one row per table row.

A number is returned under its own protocol only: the same SeeSR has a PSNR of 25.18, 24.66 and 26.20 dB on "RealSR" in
three papers, all three correct. Such sets have names of their own here: realsr (centre crops restored to 512 px),
realsr-1024 and realsr-whole. Left out are metrics that no protocol takes (TOPIQ, Q-Align, CLIP-IQA+), and the MANIQA
of D3SR's table, which does not say which of the two metrics of that name it is.

There is no row of MegaSR (2503.08096): of the paper no table could be found, only its abstract.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from megasr.errors import UsageError, unknown_name
from megasr.evaluation.protocol import get_protocol

PUBLISHED = Path(__file__).parents[1] / "assets" / "published.csv"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    Attributes:
        method: what was measured.
        steps: sampling steps per image; None when the table does not say or there are none.
        protocol: name of the protocol it was measured under.
        data: name of the image set.
        images: number of images; None when it is not published.
        values: metric of the protocol -> value, as printed.
        source: paper (arXiv id) and table.
    """

    method: str
    steps: int | None
    protocol: str
    data: str
    images: int | None
    values: Mapping[str, float]
    source: str

    @property
    def label(self) -> str:
        """Method and steps as the field writes them: SeeSR-50."""
        return self.method if self.steps is None else f"{self.method}-{self.steps}"


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Every published row, in the order of the file."""
    with PUBLISHED.open(newline="") as file:
        return tuple(_row(record) for record in csv.DictReader(file))


def _row(record: dict[str, str]) -> PublishedRow:
    text = {name: record.pop(name) for name in ("method", "protocol", "data", "source")}
    steps, images = (int(number) if (number := record.pop(name)) else None for name in ("steps", "images"))
    values = {name: float(value) for name, value in record.items() if value}
    return PublishedRow(**text, steps=steps, images=images, values=values)


def published(protocol: str, data: str) -> tuple[PublishedRow, ...]:
    """The published rows of an image set under one protocol.

    Raises:
        UsageError: there are none; names the protocols that have some for this set, or the sets that have some.
    """
    protocol = get_protocol(protocol).name
    of_set = [row for row in published_rows() if row.data == data]
    if not of_set:
        raise unknown_name("set with published numbers", data, {row.data for row in published_rows()})
    rows = tuple(row for row in of_set if row.protocol == protocol)
    if not rows:
        others = ", ".join(dict.fromkeys(row.protocol for row in of_set))
        under = ", ".join(dict.fromkeys(row.data for row in published_rows() if row.protocol == protocol))
        raise UsageError(
            f"no published numbers for {data} under {protocol}, there are some under {others}"
            + (f", and under {protocol} of {under}" if under else "")
            + "; numbers of different protocols cannot be compared"
        )
    return rows
