"""Digests that identify the weights of a network, whatever the file format that they came in."""

from __future__ import annotations

import hashlib

from torch import nn

_SAMPLES = 64  # values read per tensor: enough to tell any two trained networks apart, fast for a billion weights


def weights_digest(module: nn.Module, also: bytes = b"") -> str:
    """64 hexadecimal digits over samples of every tensor of a module, after what else identifies it.

    Values are compared as float16, so that a network and its fp16 copy are the same. To be taken before a network is
    cast to another dtype.
    """
    digest = hashlib.sha256(also)
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLES)][: _SAMPLES + 1]
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.half().cpu().numpy().tobytes())
    return digest.hexdigest()
