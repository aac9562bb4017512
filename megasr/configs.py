"""Configuration files: YAML, and the JSON configs that other projects wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from megasr.errors import UsageError
from megasr.files import at_home


def load_yaml(text: str) -> Any:
    """The content of a YAML document.

    Raises:
        yaml.YAMLError: it is none.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error


def read_configuration(given: str) -> Any:
    """The value of --config: the content of a file, or a text that is a configuration itself.

    Raises:
        UsageError: there is no such file, or it is not YAML in UTF-8.
    """
    path = Path(at_home(given))
    is_file = os.path.isfile(path)  # Path.is_file() raises for a text that is longer than a name can be
    if not is_file and path.suffix in (".yaml", ".yml", ".json") and ":" not in given:
        raise UsageError(f"--config {given}: no such file")
    try:
        return load_yaml(path.read_text(encoding="utf-8-sig") if is_file else given)
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML that can be used: {error}") from error


_NETWORKS = ("timm_model_name", "hf_model_name", "hf_tokenizer_name", "backbone")
_KERNELS = ("attn_implementation", "_attn_implementation")


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config.json.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, no object, or names code or a network elsewhere.
    """
    settings: list[tuple[str, Any]] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # is called for the objects of all levels
        settings.extend(pairs)
        return dict(pairs)

    try:
        content = json.loads(path.read_text(), object_pairs_hook=collect)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object")
    for key, value in settings:
        if (key in _NETWORKS and value) or (key in _KERNELS and "/" in str(value)):
            raise ValueError(f"{path} has {key} {value!r}: what a folder does not hold is not fetched; remove it")
    return content
