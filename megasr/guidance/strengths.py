"""Strengths: how much each guidance type contributes to an image, between not shown at all and as trained.

Training knows two states of a type: its map is shown, or it is zero (dropout). A map that is scaled would be neither:
half of a colour of the segmentation is another class. So maps are never scaled. Mixed is what subsets of the types do
to the features, the modulation M(subset), and every subset that is mixed is one that training can show:

    M(s) = sum over the levels v of s of (v - next lower level) M(types at least as strong as v) + (1 - max s) M(none)

the Lovasz extension of M (Lovasz 1983). It is M itself where all strengths are 0 or 1, continuous in between, and
treats all types alike. For edge maps, each of which has a SAFT of its own, it is the straight line between with and
without for every type; for region maps, which stage 1 mixes, it also says what half of one beside all of another is.
"""

from __future__ import annotations

from collections.abc import Mapping

from megasr.errors import UsageError

MAX_STRENGTH = 2.0  # beyond 1 it extrapolates: more than training ever showed


def check_strengths(strengths: Mapping[str, float], default: Mapping[str, float]) -> dict[str, float]:
    """The strength of every type of an adapter.

    Args:
        strengths: of some of its types.
        default: of all of them, where nothing is said.

    Raises:
        UsageError: a type is none of the adapter's, or a strength is out of range.
    """
    for name, strength in strengths.items():
        if name not in default:
            known = ", ".join(default) or "no guidance"
            raise UsageError(f"guidance strength of {name}: the adapter was trained with {known}")
        if not 0 <= strength <= MAX_STRENGTH:
            raise UsageError(f"guidance strength of {name} must be from 0 to {MAX_STRENGTH:g}, got {strength}")
    return {**default, **{name: float(strength) for name, strength in strengths.items()}}


def mix_subsets(strengths: Mapping[str, float]) -> list[tuple[float, frozenset[str]]]:
    """Weights, which sum to 1, and the subsets of types whose modulations they weigh; see the module's formula."""
    levels = sorted({strength for strength in strengths.values() if strength > 0})
    mixed = [
        (level - lower, frozenset(name for name, strength in strengths.items() if strength >= level))
        for lower, level in zip([0.0, *levels], levels, strict=False)
    ]
    rest = 1 - (levels[-1] if levels else 0.0)
    return mixed + ([(rest, frozenset[str]())] if rest else [])
