"""Lists of names, in all the ways in which people write them."""

from __future__ import annotations

from collections.abc import Iterable


def split_names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Names of a list, or of one string with commas or spaces between them ("hed,depth")."""
    return tuple(given.replace(",", " ").split()) if isinstance(given, str) else tuple(given)
