"""Conditions in batches: what was read once per image serves many tiles of it, and both halves of guidance."""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap

import torch

from megasr.networks.csm import KeyValue
from megasr.networks.network import Conditions
from megasr.networks.sites import SiteCondition


def repeat_words(known: Conditions, copies: int) -> Conditions:
    """Keys and values of B images for `copies` times B: image 0, 1, ... B - 1, 0, 1, ..."""
    if copies == 1:
        return known
    return _map_words(lambda tensor: tensor.repeat(copies, *[1] * (tensor.ndim - 1)), known)


def join_words(first: Conditions, second: Conditions) -> Conditions:
    """Keys and values of both, one after the other along the batch."""
    return _map_words(lambda a, b: torch.cat([a, b]), first, second)


def put_words(known: Conditions, placed: Conditions) -> Conditions:
    """Keys and values of `known`, with f_lq, scales and shifts of `placed`, whose batch may be a part of its size."""

    def put(sites: tuple[SiteCondition, ...], others: tuple[SiteCondition, ...]) -> tuple[SiteCondition, ...]:
        return tuple(s._replace(modulation=o.modulation) for s, o in zip(sites, others, strict=True))

    return Conditions(placed.f_lq, put(known.unet, placed.unet), put(known.controlnet, placed.controlnet))


def _map_words(change: Callable[..., torch.Tensor], *known: Conditions) -> Conditions:
    def pair(*pairs: KeyValue | None) -> KeyValue | None:
        present = [p for p in pairs if p is not None]
        return (change(*(p[0] for p in present)), change(*(p[1] for p in present))) if present else None

    def site(*sites: SiteCondition) -> SiteCondition:
        text, image, representation = (pair(*(s[i] for s in sites)) for i in range(3))
        assert text is not None
        return SiteCondition(text, image, representation, None)

    unet, controlnet = (
        tuple(starmap(site, zip(*models, strict=True)))
        for models in ([k.unet for k in known], [k.controlnet for k in known])
    )
    return Conditions(None, unet, controlnet)
