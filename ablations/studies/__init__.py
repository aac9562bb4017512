"""The studies that ship with the project; importing this package registers them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ablations.registry import REGISTERED, Study
from ablations.studies import degradation as degradation
from ablations.studies import extractors as extractors
from ablations.studies import fusion as fusion
from ablations.studies import prior_selection as prior_selection
from ablations.studies import sampling as sampling
from ablations.studies import semantics as semantics
from megasr.errors import unknown_name


def studies() -> Mapping[str, Study]:
    """All registered studies by name."""
    return MappingProxyType(REGISTERED)


def get_study(name: str) -> Study:
    """The registered study of this name. Raises UsageError with the nearest names when there is none."""
    if name not in REGISTERED:
        raise unknown_name("study", name, REGISTERED)
    return REGISTERED[name]
