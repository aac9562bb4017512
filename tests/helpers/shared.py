"""Real photographs and public weights beside the checkout, for the tests that need them; the others pass without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT


def shared(*parts: str) -> Path:
    """A file or folder below `shared/`, which lies beside the checkout; the test is skipped where it is not there.

    MEGASR_SHARED_DATA names `shared/data` where it lies elsewhere.
    """
    named = os.environ.get("MEGASR_SHARED_DATA")
    path = (Path(named).parent if named else ROOT.parent / "shared").joinpath(*parts)
    if not path.exists():
        pytest.skip(f"there is no {path}; MEGASR_SHARED_DATA names the folder `data` beside `weights`")
    return path
