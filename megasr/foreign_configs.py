"""The config.json of a folder of weights: read as data, and not followed to other places.

The libraries that build networks of them know settings that name code or networks elsewhere (a kernel of the Hugging
Face hub, a timm or transformers model), fetch these unasked, and ask on the terminal whether foreign code may run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NETWORKS = ("timm_model_name", "hf_model_name", "hf_tokenizer_name", "backbone")
_KERNELS = ("attn_implementation", "_attn_implementation")


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config.json.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, no object, or names code or a network elsewhere.
    """
    try:
        content = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object")
    for key, value in _settings(content):
        if (key in _NETWORKS and value) or (key in _KERNELS and "/" in str(value)):
            raise ValueError(f"{path} has {key} {value!r}: what a folder does not hold is not fetched; remove it")
    return content


def _settings(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        yield from content.items()
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _settings(value)
