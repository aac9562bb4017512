"""Common mistakes on a training's command line are answered at once: importing torch and diffusers takes many seconds.

Nothing here refuses what the whole parser would take; where this is not sure it says nothing.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megasr.commands.schema import (
    DATA_MODULES,
    Schema,
    all_keys,
    at,
    class_schema,
    config_schema,
    data_modules,
    refuses,
    strings_in_calls,
)
from megasr.errors import UsageError, split_names, unknown_name
from megasr.files import at_home
from megasr.plugins import OWN, plugin_modules, unknown_entry
from megasr.training.folders import CHOSEN_BY_TRAINER, SHIPPED, no_checkpoint, refuse_another_run
from megasr.weights.local import find_prior

NAME_LISTS = ("model.adapter.guidance", "model.sampler.shown_guidance", "evaluation.metrics")
_FOLDERS = ("train_root", "eval_root", "train_lq_root", "eval_lq_root")
_HOLD_CLASSES = ("class_path", "data", "callbacks", "logger", "strategy", "plugins", "profiler")
_NO_PATH = rf"{'|'.join([*CHOSEN_BY_TRAINER, *SHIPPED, 'null', 'None'])}|.*:.*|"  # of ckpt_path
_TERMS = "model.objective.terms"
_RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID")


def check_command(command: str, args: Sequence[str]) -> None:
    """Check the options of `megasr fit | validate | test | pretrain` and the files that they name.

    Raises:
        UsageError: a key, a name or a value cannot be used.
        MegaSRError: a file or a prior is missing.
    """
    asks = any(word.startswith(("--print_", "--help")) or word == "-h" or word.endswith(".help") for word in args)
    if asks or any(os.environ.get(rank, "0") != "0" for rank in _RANKS):  # the first process has checked it
        return
    given = _Given(command, read_settings(args))
    values, data = given.values, given.schema["data"]
    checkpoint = at_home(str(values.get("ckpt_path")))
    if not re.fullmatch(_NO_PATH, checkpoint) and not Path(checkpoint).exists():
        raise no_checkpoint(checkpoint)
    elsewhere = any(key.startswith(("trainer.logger", "trainer.fast_dev_run")) for key in values)
    folder = values.get("trainer.default_root_dir", "runs")
    if command == "fit" and not elsewhere and isinstance(folder, str):
        refuse_another_run(Path(at_home(folder)) / "config.yaml", resumes=checkpoint not in ("None", "null"))
    if given.foreign:
        return
    if not given.data:
        raise UsageError(f"no data: name a data module in --config, or with --data: {', '.join(data_modules())}")
    if lacking := [f"data.{name}" for name in data.get("required", ()) if f"data.{name}" not in values]:
        raise UsageError(f"{given.data} needs {' and '.join(lacking)}")
    if command != "pretrain":
        given.check_names()
    _check_folders(given)


def check_recipe(raw: Mapping[str, Any]) -> None:
    """Check the sections model, data and trainer of a study's recipe.

    Raises:
        UsageError: a key, a name or a value cannot be used.
        MegaSRError: the prior is missing.
    """
    given = _Given("study", _leaves({name: raw[name] for name in ("model", "data", "trainer") if name in raw}))
    if not given.foreign:
        given.check_names()


def join_names(args: Sequence[str]) -> list[str]:
    """Write `--model.adapter.guidance hed depth`, and `hed,depth`, as the list that the parser reads."""
    joined, words = list[str](), list(args)
    while words:
        key, equals, value = words.pop(0).partition("=")
        if key.removeprefix("--") not in NAME_LISTS:
            joined.append(f"{key}{equals}{value}")
            continue
        values = [value] if equals else []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        text = " ".join(values)
        plain = values and not set(text) & set("[]{}") and text not in ("null", "None")
        joined.append(f"{key}=[{','.join(split_names(text))}]" if plain else f"{key}{'=' * bool(values)}{text}")
    return joined


def check_guidance(name: str) -> None:
    """Refuse an unknown guidance type; torch is imported only where users' modules may have registered it.

    Raises:
        UsageError: there is none of this name.
    """
    if name in (known := guidance_names()):
        return
    if not plugin_modules():
        raise unknown_entry("guidance type", name, known)
    from megasr.guidance.registry import get_guidance

    get_guidance(name)


def guidance_names() -> list[str]:
    """The names of megasr.guidance.registry, without those of users' packages."""
    names = []
    for name, *rest in strings_in_calls("megasr.guidance.registry", "GuidanceType"):
        names += [name, f"oracle_{name}"] if "lq" in rest and name != "noise" else [name]
    return names


def check_term(name: str) -> None:
    """Refuse an unknown term of the objective, as check_guidance does a type.

    Raises:
        UsageError: there is none of this name.
    """
    if name in (known := term_names()):
        return
    if not plugin_modules():
        raise unknown_entry("term of objective.terms", name, known)
    from megasr.losses.restoration import TERMS

    TERMS[name]


def term_names() -> list[str]:
    """The names of megasr.losses.restoration.TERMS, without those of users' packages."""
    return [name for name, *_ in strings_in_calls("megasr.losses.restoration", "TERMS.register")]


def benchmark_names() -> list[str]:
    """The names of data_pipelines.benchmarks."""
    return [name for name, *_ in strings_in_calls("data_pipelines.benchmarks", "Benchmark")]


class _Given:
    """What options and files set.

    Attributes:
        values: dotted key, without init_args, -> value.
        schema: section -> its schema, that of the chosen class for `data`.
        data: name of the data module; empty when none is named.
        foreign: a class of somebody else's is named: importing it may register names that are not known here.
    """

    def __init__(self, command: str, settings: Iterable[tuple[str, Any]]) -> None:
        self.values: dict[str, Any] = {}
        self.schema: dict[str, Schema] = config_schema(command)["properties"] | {"data": {}}
        self.data = ""
        settings = [(key.replace("+", ""), value) for key, value in settings]  # KEY+ appends to a list
        self.foreign = any(key in ("root", "?") or _is_foreign(key, value) for key, value in settings)
        for key, value in settings:
            if key in ("data", "data.class_path", "model.class_path"):
                self._choose(key.partition(".")[0], value if isinstance(value, str) else "")
            elif key not in ("root", "?", "config", "print_config"):
                self._add(key, value)

    def _choose(self, section: str, name: str) -> None:
        module, _, class_name = name.rpartition(".")
        if section == "data":
            self.data = class_name
            known = [*data_modules(), *benchmark_names()]
            elsewhere = module or self.foreign or plugin_modules()
            if name not in known and not elsewhere and difflib.get_close_matches(name, known):
                raise unknown_name("data module", name, known)
        self.schema[section] = class_schema(module or DATA_MODULES, class_name)

    def _add(self, key: str, value: Any) -> None:
        section, *path = key.split(".")
        path = path[1:] if path[:1] == ["init_args"] else path
        schema = at(self.schema[section], path) if section in self.schema else None
        if schema is None and section == "data":
            raise unknown_name(f"key of {self.data}", ".".join(path), all_keys(self.schema["data"]))
        if schema is None:
            every = (f"{name}.{inside}" for name, known in self.schema.items() for inside in all_keys(known))
            raise unknown_name("key", ".".join([section, *path]), [*every, *self.schema])
        if isinstance(value, str) and (words := refuses(schema, value)):
            raise UsageError(f"{key} must be one of {', '.join(words)}, got {value!r}")
        self.values[".".join([section, *path])] = value

    def check_names(self) -> None:
        """Check the names of guidance types, terms, protocols and metrics, and that the prior is here."""
        from megasr.evaluation.protocol import get_protocol

        for key in NAME_LISTS[:2]:
            for name in _names(self.values.get(key)):
                check_guidance(name)
        written = re.findall(r"(\w+)['\"]?\s*:", str(self.values.get(_TERMS)))  # {l1: 1, lpips_alex: 2}
        for name in [
            *written,
            *(key.removeprefix(f"{_TERMS}.") for key in self.values if key.startswith(f"{_TERMS}.")),
        ]:
            check_term(name)
        for section in ("evaluation", "monitor"):
            if isinstance(protocol := self.values.get(f"{section}.protocol", "weight-free-v1"), str):
                get_protocol(protocol)
                metrics = () if self.data == "BenchmarkDataModule" else _names(self.values.get(f"{section}.metrics"))
                for name in metrics:
                    get_protocol(protocol).metric(name)
        if isinstance(prior := self.values.get("model.prior", "tiny"), str):
            find_prior(at_home(prior))


def _check_folders(given: _Given) -> None:
    from megasr.image_decoding import list_images

    if given.data in ("FolderDataModule", "PairedDataModule"):
        for name in _FOLDERS:
            if isinstance(folder := given.values.get(f"data.{name}"), str):
                list_images(at_home(folder))


def _is_foreign(key: str, value: Any) -> bool:
    """Whether a value names a class that is neither the project's nor Lightning's."""
    packages = re.findall(r"([A-Za-z_]\w*)(?:\.\w+)+", str(value)) if key.rpartition(".")[2] in _HOLD_CLASSES else ()
    return any(package not in (*OWN, "lightning") for package in packages)


def _names(value: Any) -> Sequence[str]:
    """The names of a list, or of a string that holds one in any of the ways in which it may be written."""
    if isinstance(value, str):
        return () if value in ("null", "None") else split_names(re.sub(r"[\[\]()'\"]", "", value))
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | tuple) else ()


def read_settings(args: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all options and of the files of --config, in their order; key "?" for another content.

    Raises:
        UsageError: there is no such file, or it is not YAML in UTF-8.
    """
    from megasr.configs import read_configuration

    for i, word in enumerate(args):
        if not word.startswith("--"):
            continue
        key, joined, value = word[2:].partition("=")
        if not joined and (i + 1 == len(args) or args[i + 1].startswith("--")):
            continue  # no value follows
        value = value if joined else args[i + 1]
        if key == "config":
            content = read_configuration(value)
            yield from _leaves(content) if isinstance(content, Mapping) else [("?", value)]
        else:
            yield key, value


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
