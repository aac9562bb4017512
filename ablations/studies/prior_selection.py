"""Which guidance types help? The paper chose edges, depth and segmentation by such a study and published none of it.

Three forms of one question. `prior_selection` trains an adapter for every combination. `prior_selection_amortised`
trains one per seed that loses every type half of the time, and restores with every combination: 2^n results for the
cost of one training, of an adapter that no combination has to itself. `prior_selection_quick` is the latter with the
paper's types alone, for a laptop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

from ablations.registry import Ablation, Study, change, register
from megasr.guidance.registry import ORACLE, get_guidance

_GUIDANCE, _SHOWN = "model.adapter.guidance", "model.sampler.shown_guidance"
_TYPE_DROPOUT = "model.objective.type_dropout"
PAPERS = ("hed", "depth", "segmentation")
POOL = (*PAPERS, "canny")
NOISE = "noise"
_PERFECT = ORACLE + "hed"  # what an amortised adapter is trained with too: maps that it never saw prove nothing
# Guidance is about structure. Of the structural metrics that need no weights this one alone prefers the tiny prior's
# restorations to bicubic's blur (README, reference numbers). It was chosen after pilot runs of the quick study with
# seeds 0 and 1, which is why no recipe of these studies uses those.
_PRIMARY = "fsim"
_EXPECTED_ALONE = {
    "hed": "Better: edges say where to be sharp, which is what blur has taken from lq.",
    "canny": "Slightly better, but worse than hed: its edges are exact in place, but noise and blocks have edges too.",
    "depth": "Slightly better: depth separates objects, but says little that lq, blurred, does not show as well.",
    "segmentation": "Better where classes are right and worse where they are wrong, which about cancels in the mean.",
    NOISE: "Not better: it says nothing of the image.",
}


def _describe(types: Sequence[str]) -> str:
    return "; ".join(get_guidance(name).description for name in types) or "no guidance"


def _combination(path: str, types: Sequence[str]) -> Ablation:
    """Exactly these guidance types, trained (path of the adapter) or shown (path of the sampler)."""
    name = "+".join(types) or "none"
    return Ablation(name, {path: types}, (path,), _describe(types), tuple(types), _expect(types))


def _expect(types: Sequence[str]) -> str:
    """What is expected of a combination, and why; nothing of the reference, which has no types."""
    if len(types) < 2:
        return "".join(_EXPECTED_ALONE[name] for name in types)
    if NOISE in types:
        others = "+".join(name for name in types if name != NOISE)
        return f"Not better than {others}: noise adds nothing that could be used."
    edges = [name for name in types if get_guidance(name).role == "edge"]
    if set(types) == set(PAPERS):
        return "Better than all of its parts: one type each for borders, layout and materials, as the paper claims."
    if len(edges) == len(types):
        return f"Hardly better than {edges[0]} alone: several maps of edges say the same."
    if not edges:
        return "Better than its parts, by less than their sum: both show regions, and neither fine structure."
    if len(edges) == 1:
        return "Better than its parts, by nearly their sum: edges and regions say different things."
    return f"No better than without {edges[-1]}: {edges[0]} has brought its edges already."


def _oracle(path: str, types: Sequence[str]) -> Ablation:
    return change(
        "oracle", {path: types}, _describe(types), "Better than all others: it shows structure that lq has lost."
    )


def worth_training(pool: Sequence[str]) -> list[tuple[str, ...]]:
    """Singles, all pairs, the paper's triple, all but one, and all: for four types every combination."""
    chosen: dict[tuple[str, ...], None] = {}
    for size in (1, 2, len(pool) - 1, len(pool)):
        chosen |= dict.fromkeys(combinations(pool, size))
    if set(PAPERS) <= set(pool):
        chosen[PAPERS] = None
    return sorted(chosen, key=lambda types: (len(types), [pool.index(name) for name in types]))


def every_subset(pool: Sequence[str]) -> list[tuple[str, ...]]:
    """All combinations but the empty one."""
    return [types for size in range(1, len(pool) + 1) for types in combinations(pool, size)]


def _amortised(name: str, question: str, pool: Sequence[str], shown: Iterable[Sequence[str]]) -> Study:
    trained = (*pool, NOISE, _PERFECT)
    reference = {_GUIDANCE: trained, _TYPE_DROPOUT: 0.5, _SHOWN: []}
    return Study(
        name=name,
        question=question,
        reference=replace(change("none", reference, "no guidance is shown"), combination=()),
        ablations=(*(_combination(_SHOWN, types) for types in shown), _oracle(_SHOWN, [_PERFECT])),
        primary_metric=_PRIMARY,
        controls={NOISE: "negative", "oracle": "positive"},
    )


PRIOR_SELECTION = register(
    Study(
        name="prior_selection",
        question="Which guidance types, taken from lq, improve the restoration over no guidance at equal steps?",
        reference=_combination(_GUIDANCE, ()),
        ablations=(
            *(_combination(_GUIDANCE, types) for types in worth_training(POOL)),
            _combination(_GUIDANCE, (NOISE,)),
            _oracle(_GUIDANCE, [ORACLE + name for name in PAPERS]),
        ),
        primary_metric=_PRIMARY,
        controls={NOISE: "negative", "oracle": "positive"},
    )
)

AMORTISED = register(
    _amortised(
        "prior_selection_amortised",
        "Which guidance types, taken from lq, does an adapter restore better with that is used to any of them?",
        POOL,
        every_subset((*POOL, NOISE)),
    )
)

QUICK = register(
    _amortised(
        "prior_selection_quick",
        "Of edges, depth and segmentation, taken from lq: which does one adapter, used to any of them, restore with?",
        PAPERS,
        (*every_subset(PAPERS), (NOISE,)),
    )
)
