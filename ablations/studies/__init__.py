"""The studies that ship with the project; importing this package registers them."""

from __future__ import annotations

from ablations.registry import STUDIES, Study
from ablations.studies import degradation as degradation
from ablations.studies import extractors as extractors
from ablations.studies import fusion as fusion
from ablations.studies import objective as objective
from ablations.studies import parts as parts
from ablations.studies import prior_selection as prior_selection
from ablations.studies import sampling as sampling
from ablations.studies import semantics as semantics
from megasr.plugins import Registry


def studies() -> Registry[Study]:
    """All registered studies by name, those of users' modules last; an unknown name is a UsageError."""
    return STUDIES


def get_study(name: str) -> Study:
    """The registered study of this name. Raises UsageError with the nearest names when there is none."""
    return STUDIES[name]
