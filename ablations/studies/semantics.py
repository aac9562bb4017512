"""What carries the semantics: words, image tokens, both, or v1's representation too? Through which connector and gate?

The recipe says where tags and tokens come from (model.tagger, model.vision). Its tagger must look at lq: the positive
control takes the tags that come with the data in its place.
"""

from __future__ import annotations

from typing import Any

from ablations.registry import Study, change, register

_ADAPTER, _TAGGER = "model.adapter", "model.tagger"
_TEXT, _IMAGE = f"{_ADAPTER}.text", f"{_ADAPTER}.image"
_RCA, _GATE, _CONNECTOR = f"{_ADAPTER}.rca", f"{_ADAPTER}.gate", f"{_ADAPTER}.connector"
_BOTH: dict[str, Any] = {_TEXT: True, _IMAGE: True, _RCA: False, _GATE: "linear", _CONNECTOR: "per_site"}


def _without_text(changes: dict[str, Any]) -> dict[str, Any]:
    """A tagger whose tags nobody reads is refused."""
    return {**changes, _TEXT: False, _TAGGER: None}


SEMANTICS = register(
    Study(
        name="semantics",
        question="Which semantics restore best, and do a connector for every site and a linear gate make a difference?",
        reference=change("both", _BOTH, "tags and image tokens of lq, as the second version has it"),
        ablations=(
            change(
                "none", _without_text({_IMAGE: False}), "neither tags nor image tokens: the ControlNet alone",
                "Worse: a frozen prior that is not told what it sees falls back on the average picture.",
            ),
            change(
                "text", {_IMAGE: False}, "tags alone",
                "Worse: tags name what is there but not where, and every site is told the same.",
            ),
            change(
                "image", _without_text({}), "image tokens alone",
                "Worse, by less than tags alone: the tokens of lq hold most of what the tagger reads from it.",
            ),
            change(
                "v1", {_RCA: True}, "and RCA over the representation, the path of the first version",
                "No difference: the representation is made of what the image tokens have already brought.",
            ),
            change(
                "shared_connector", {_CONNECTOR: "shared"}, "one translation of the image tokens for all sites",
                "Slightly worse: this takes away what the paper calls customised, but each site keeps keys, values "
                "and a gate of its own.",
            ),
            change(
                "channel_gate", {_GATE: "channel"}, "a gate of one number per channel",
                "No difference: the output projection before it already mixes the channels.",
            ),
            change(
                "scalar_gate", {_GATE: "scalar"}, "a gate of one number per site",
                "Slightly worse: image tokens can then be turned up or down, but not fitted to what the site does.",
            ),
            change(
                "exact_tags", {_TAGGER: None}, "the tags that come with the data instead of the tagger's",
                "Better: a tagger that looks at lq misses materials that blur and noise have hidden.",
            ),
        ),
        primary_metric="fsim",  # words put texture where bicubic is smooth, and SSIM prefers smooth
        controls={"exact_tags": "positive"},
    )
)  # fmt: skip
