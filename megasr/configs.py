"""What is read of configuration files: YAML with limits, lists of names, and configs that other projects wrote."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from megasr.errors import UsageError
from megasr.files import at_home

MAX_NODES = 100_000  # of a document whose aliases are written out; the largest recipe has some hundred
MAX_DEPTH = 100
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str) -> Any:
    """The content of a YAML document.

    Raises:
        yaml.YAMLError: it is none, or larger or deeper than the limits.
    """
    check_yaml(text)
    return yaml.load(text, Loader=_LOADER)


@functools.cache
def limit_jsonargparse() -> None:
    """Let jsonargparse, and LightningCLI with it, refuse what is beyond the limits in files and on the command line."""
    from jsonargparse import get_loader, set_loader

    load = get_loader("yaml")

    def load_checked(text: str) -> Any:
        check_yaml(text)
        return load(text)

    set_loader("yaml", load_checked, exceptions=(yaml.YAMLError,))


def check_config_files(args: Sequence[str]) -> None:
    """Check the files of --config, which jsonargparse does not name when one is wrong.

    Raises:
        UsageError: one is not UTF-8, no YAML, or beyond the limits.
    """
    for option, following in pairwise([*args, ""]):
        name, _, value = option.partition("=")
        path = Path(at_home(value or following))
        # Path.is_file() raises for a configuration that is given itself, if it is longer than a name can be.
        if name not in ("-c", "--config") or not os.path.isfile(path):
            continue
        try:
            check_yaml(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UsageError(f"--config {path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
        except yaml.YAMLError as error:
            raise UsageError(f"{path} is not YAML that can be used: {error}") from error


def check_yaml(text: str) -> None:
    """Measure a document from its events, before anything is built of it.

    Raises:
        yaml.YAMLError: it is no YAML, has more than MAX_NODES values or MAX_DEPTH levels, or contains itself.
    """
    sizes: dict[str, int] = {}  # anchor -> values below it
    opened: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, 1))
            if len(opened) > MAX_DEPTH:
                raise yaml.YAMLError(f"nested more than {MAX_DEPTH} levels deep, {_place(event)}")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor or "", 0)
            if not size:
                raise yaml.YAMLError(f"*{event.anchor} contains itself or nothing, {_place(event)}")
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, total = opened[-1]
        opened[-1] = outer, total + size
        if total + size > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} values with its aliases written out, {_place(event)}")


def _place(event: yaml.Event) -> str:
    return f"line {event.start_mark.line + 1}" if event.start_mark else "somewhere"


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
