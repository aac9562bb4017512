"""LoRA (2106.09685) on a copy of a frozen network that shares its weights: two networks in the memory of one."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from megasr.rng import seeded_initialisation

Network = TypeVar("Network", bound=nn.Module)
# They read the timestep or the whole prompt.
_TIME = ("time_embedding", "time_emb_proj", "add_embedding", "time_text_embed", ".norm1", "norm_out")


def sharing_copy(network: Network) -> Network:
    """A copy whose modules are its own and whose parameters are those of `network`: what is added to it stays there."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})


def add_lora(network: Network, rank: int, seed: int, *place: str) -> Network:
    """Put a LoRA on every linear layer and convolution, in place; returns the network, which computes as before.

    Args:
        network: frozen; a denoiser or encoder of diffusers.
        rank: of the LoRAs.
        seed: of the initial weights.
        place: to which the initial weights are keyed.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # Queries of the text in an MMDiT's last block, whose text goes nowhere.
    unread = {f"{n}.add_q_proj" for n, part in network.named_modules() if getattr(part, "context_pre_only", None)}
    targets = [
        name
        for name, part in network.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d) and not any(word in name for word in _TIME) and name not in unread
    ]
    with seeded_initialisation(seed, *place):
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), network)
    return network
