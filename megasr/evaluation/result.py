"""The result of an evaluation: rows per image, means with intervals, and where the numbers come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.protocol import Protocol, get_protocol
from megasr.files import write_whole

Row = dict[str, Any]  # "key": str, then one float per metric


@dataclass(frozen=True)
class Evaluation:
    """One set of images, measured under one protocol.

    Attributes:
        protocol: name of the protocol.
        fingerprint: of the protocol. Numbers of different fingerprints may not be compared.
        rows: one {"key", metric: value} per image, in the order of the set.
        means: metric -> mean over the images, in the order of the protocol.
        intervals: metric -> 95 % bootstrap interval of the mean over photographs; empty for a single photograph.
        set_values: metric of the whole set (FID, KID) -> value.
        skipped: metric -> why it was not taken.
        data: name of the benchmark set, None when the images are none.
        provenance: commit, versions, weights, device, date, and config and seed where the images were made here.
    """

    protocol: str
    fingerprint: str
    rows: tuple[Row, ...]
    means: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    set_values: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    data: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the images in the order of the rows."""
        return tuple(row["key"] for row in self.rows)

    def get_protocol(self) -> Protocol:
        """The registered protocol, for directions and names.

        Raises:
            MegaSRError: it has changed since these numbers were taken.
        """
        protocol = get_protocol(self.protocol)
        if protocol.fingerprint != self.fingerprint:
            raise MegaSRError(
                f"these numbers were taken under {self.protocol} {self.fingerprint}, "
                f"which is {protocol.fingerprint} here: they cannot be compared"
            )
        return protocol


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write JSON, whole or not at all. Raises MegaSRError when the place cannot be written to."""
    write_whole(path, (json.dumps(asdict(evaluation), indent=1) + "\n").encode())


def read_evaluation(path: Path) -> Evaluation:
    """Read what write_evaluation wrote.

    Raises:
        MegaSRError: the file is missing, damaged or holds something else.
    """
    try:
        content = json.loads(path.read_text())
        content["rows"] = tuple(content["rows"])
        content["intervals"] = {name: (low, high) for name, (low, high) in content["intervals"].items()}
        return Evaluation(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MegaSRError(f"{path} is not an evaluation that can be read: {error}") from error


def check_weights(first: Evaluation, other: Evaluation) -> None:
    """Refuse to compare numbers of one metric that were taken with two files of weights.

    Raises:
        UsageError: a file that both were measured with has another sha256.
    """
    mine, theirs = first.provenance.get("weights", {}), other.provenance.get("weights", {})
    for name in mine.keys() & theirs.keys():
        if mine[name] != theirs[name]:
            raise UsageError(f"measured with two files {name}, {mine[name]} and {theirs[name]}: not to be compared")


def version_note(evaluations: Sequence[Evaluation]) -> str:
    """A note on numbers that different versions of pyiqa have taken; empty when one has."""
    versions = {evaluation.provenance.get("versions", {}).get("pyiqa", "unknown") for evaluation in evaluations}
    return f"measured with different versions of pyiqa: {', '.join(sorted(versions))}" if len(versions) > 1 else ""
