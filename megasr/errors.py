"""The errors a person can cause, and what the command line makes of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MegaSRError(RuntimeError):
    """Something outside the program is missing or broken (a weight, a file, a checkpoint). The CLI exits with 1."""


class UsageError(ValueError):
    """A value that was typed or configured cannot be used. The CLI exits with 2."""


def unknown_name(kind: str, got: str, known: Iterable[str]) -> UsageError:
    """The one way to say that a name is not registered: it shows the nearest names, or all when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(got, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    return UsageError(f"unknown {kind} {got!r}; {hint}")
