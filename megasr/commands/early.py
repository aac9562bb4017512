"""What is wrong with a training's command line is said at once: before torch, lightning and diffusers are imported.

Importing those takes many seconds. Names, files and simple types are known without them (see signatures). Nothing here
refuses what the whole parser would take: where this is not sure it says nothing, and that one has the last word.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megasr.commands.signatures import OWN, UNKNOWN, Parameter, arguments_of, calls, exported, parameters
from megasr.errors import UsageError, unknown_name
from megasr.files import at_home
from megasr.names import split_names
from megasr.training.folders import CHOSEN_BY_TRAINER, SHIPPED, no_checkpoint, refuse_another_run
from megasr.weights.local import find_prior, read_size_multiple

DATA_MODULES = "data_pipelines.datamodules"
_TRAINER = ("lightning.pytorch.trainer.trainer", "Trainer")
_MODULE = ("megasr.training.module", "MegaSRModule")
_SECTIONS = {
    "trainer": _TRAINER,
    "model": _MODULE,
    "evaluation": ("megasr.training.protocol_metrics", "ProtocolMetrics"),
    "monitor": ("megasr.training.monitor", "TrainingMonitor"),
}
_PRETRAINING = {"trainer": _TRAINER, "export": ("megasr.pretraining.module", "Export")}
_OTHERS = {"config", "print_config", "seed_everything", "allow_changed_config", "data", "model"}
_OF_SUBCLASS = {"class_path", "init_args", "dict_kwargs", "help"}  # what jsonargparse adds to a section
_WORDS_FOR_CHECKPOINTS = {*CHOSEN_BY_TRAINER, *SHIPPED, "null", "None", ""}
_FOLDERS = ("train_root", "eval_root", "train_lq_root", "eval_lq_root")
_OF_CLASSES = {"data", "callbacks", "logger", "strategy", "plugins", "profiler"}
_UNREAD = "?"  # in the place of the keys of what is no configuration
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
    from megasr.configs import check_config_files

    check_config_files(args)
    _Given(command, _settings(args)).check()


def check_recipe(raw: Mapping[str, Any]) -> None:
    """Check the sections model, data and trainer of a study's recipe.

    Raises:
        UsageError: a key, a name or a value cannot be used.
        MegaSRError: the prior is missing.
    """
    given = _Given("study", _leaves({name: raw[name] for name in ("model", "data", "trainer") if name in raw}))
    given.check_names()


def join_names(command: str, args: Sequence[str]) -> list[str]:
    """Write `--model.adapter.guidance hed depth`, and `hed,depth`, as the list that the parser reads.

    Other options that hold names are treated alike.
    """
    joined: list[str] = []
    sections = _sections(command)
    words = list(args)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not _holds_names(key.split("."), sections):
            joined.append(word)
            continue
        values = [value] if equals else []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        text = " ".join(values)
        plain = values and not set(text) & set("[]{}") and text not in ("null", "None")
        joined.append(f"--{key}=[{','.join(split_names(text))}]" if plain else f"--{key}{'=' * bool(values)}{text}")
    return joined


def _holds_names(path: Sequence[str], known: Mapping[str, Any]) -> bool:
    section, *inside = path
    found = known.get(section)
    if not inside or found is None:
        return isinstance(found, Parameter) and found.holds_names()
    return _holds_names(inside, (found.fields() if isinstance(found, Parameter) else found) or {})


def _sections(command: str) -> dict[str, dict[str, Parameter] | None]:
    return {name: parameters(*c) for name, c in (_PRETRAINING if command == "pretrain" else _SECTIONS).items()}


def _settings(args: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all options and of what the files hold, in the order in which they are read."""
    for key, value in _options(args):
        if key == "config":
            content = _read_config(value) if value else None
            yield from _leaves(content) if isinstance(content, Mapping) else ((_UNREAD, value),)
        elif value is not None:
            yield key, value


def _options(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(key, value) of every option; None where no value follows."""
    for i, word in enumerate(args):
        if word.startswith("--"):
            key, joined, value = word[2:].partition("=")
            follows = i + 1 < len(args) and not args[i + 1].startswith("--")
            yield key, value if joined else args[i + 1] if follows else None


class _Given:
    """What options and files set, in their order: dotted key -> value."""

    def __init__(self, command: str, settings: Iterable[tuple[str, Any]]) -> None:
        self.command = command
        self.values: dict[str, Any] = {}
        self.sections = _sections(command)
        self.top = _OTHERS | arguments_of(*_TRAINER, command) | self.sections.keys()
        self.data: str | None = None  # name of the data module
        # KEY+ appends to a list
        settings = [(key.replace("+", ""), at_home(v) if isinstance(v, str) else v) for key, v in settings]
        # A class of somebody else's may register names that are not known here; nor are the keys of benchmark sets.
        self.foreign = any(key in (_UNREAD, "root") or _is_foreign(key, value) for key, value in settings)
        for key, value in settings:
            if key not in (_UNREAD, "root", command):
                self._add(key, value)

    def _add(self, key: str, value: Any) -> None:
        section, *path = key.split(".")
        if path and path[0] == "init_args":
            path = path[1:]
        if key in ("data", "data.class_path", "model.class_path"):
            self._choose(section, value)
            return
        if section not in self.top:
            raise unknown_name("key", key, self.keys())
        known = self.sections.get(section)
        if path and known is not None and path[0] not in _OF_SUBCLASS:
            self._check_key(key, path, known, value)
        self.values[".".join([section, *path])] = value

    def _choose(self, section: str, value: Any) -> None:
        """A class for a section: what is set there from now on are its arguments."""
        name = value if isinstance(value, str) else ""
        module, _, class_name = name.rpartition(".")
        self.sections[section] = None
        if module:
            self.sections[section] = parameters(module, class_name)
        elif section == "data" and name in data_modules():
            self.sections[section] = parameters(DATA_MODULES, name)
        elif section == "data" and not self.foreign and _is_misspelt_module(name):
            raise unknown_name("data module", name, [*data_modules(), *benchmark_names()])
        if section == "data":
            self.data = class_name if self.sections["data"] is not None else None
            taken = self.sections["data"] or {}
            self.values = {k: v for k, v in self.values.items() if k[:5] != "data." or k[5:] in taken}

    def _check_key(self, key: str, path: list[str], known: dict[str, Parameter], value: Any) -> None:
        name, *inside = path
        if name not in known:
            if key.startswith("data.") and self.data:
                raise unknown_name(f"key of {self.data}", name, known)
            raise unknown_name("key", key.replace(".init_args", ""), self.keys())
        if not inside:
            if words := known[name].refuses(value):
                raise UsageError(f"{key} must be {words}, got {value!r}")
        elif (fields := known[name].fields()) is not None and inside[0] not in _OF_SUBCLASS:
            self._check_key(key, inside, fields, value)

    def keys(self) -> list[str]:
        """All keys that are known, for suggestions."""
        sections = {name: known for name, known in self.sections.items() if known}
        inside = [f"{name}.{key}" for name, known in sections.items() for key in _all_keys(known)]
        return [*inside, *(self.top - self.sections.keys())]

    def value(self, key: str) -> Any:
        """What is set, else the default; UNKNOWN when that is not known."""
        section, name = key.split(".", 1)
        known = self.sections.get(section) or {}
        return self.values.get(key, known[name].default if name in known else UNKNOWN)

    # What is wrong with it --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what is wrong with the whole of it."""
        if "data" not in self.sections and not self.foreign:
            raise UsageError(f"no data: name a data module in --config, or with --data: {', '.join(data_modules())}")
        self.check_names()
        self._check_files()
        self._check_required()
        trained = self.command in ("fit", "validate", "test")
        if trained and self.data and "scale_factor" in (self.sections["data"] or {}):
            check_scale_factors(self.value("model.scale_factor"), self.value("data.scale_factor"))
        if self.command == "fit":
            self._check_output()

    def check_names(self) -> None:
        """Guidance types, protocols, metrics and the prior."""
        if self.foreign or self.command == "pretrain":
            return
        for key in ("model.adapter.guidance", "model.sampler.shown_guidance"):
            for name in _names(self.values.get(key)):
                check_guidance(name)
        self._check_protocols()
        prior = self.value("model.prior")
        if isinstance(prior, str):
            check_crops(self.command, prior, {name: self.value(f"data.{name}") for name in _CROPS})

    def _check_protocols(self) -> None:
        from megasr.evaluation.protocol import get_protocol

        for section in ("evaluation", "monitor"):
            if isinstance(name := self.value(f"{section}.protocol"), str):
                get_protocol(name)
        protocol = self.value("evaluation.protocol")
        for name in _names(self.values.get("evaluation.metrics")) if self.data != "BenchmarkDataModule" else ():
            get_protocol(protocol).metric(name)

    def _check_files(self) -> None:
        from megasr.image_decoding import list_images

        check_checkpoint(self.values.get("ckpt_path"))
        for name in _FOLDERS:
            folder = self.values.get(f"data.{name}")
            if isinstance(folder, str) and self.data in ("FolderDataModule", "PairedDataModule"):
                list_images(folder)

    def _check_required(self) -> None:
        needed = (f"data.{name}" for name, taken in (self.sections.get("data") or {}).items() if taken.required)
        lacking = [key for key in needed if key not in self.values]
        if lacking and not self.foreign:
            raise UsageError(f"{self.data} needs {' and '.join(lacking)}")

    def _check_output(self) -> None:
        elsewhere = any(key.startswith(("trainer.logger", "trainer.fast_dev_run")) for key in self.values)
        folder = self.values.get("trainer.default_root_dir", "runs")
        if not elsewhere and isinstance(folder, str):
            refuse_another_run(Path(folder) / "config.yaml", resumes=self.values.get("ckpt_path") not in (None, "null"))


_CROPS = ("crop_size_px", "eval_crop_size_px")


def check_crops(command: str, prior: str, sizes: Mapping[str, Any]) -> None:
    """Refuse a crop that the prior cannot encode, before the prior is loaded.

    Args:
        command: `fit` encodes both, `validate` the crops of the evaluation; `test` restores images of any size.
        prior: `tiny`, a name, a folder or a hub id.
        sizes: crop_size_px and eval_crop_size_px; what is no number is passed over.

    Raises:
        UsageError: a crop is no multiple of what the prior needs.
        MegaSRError: the prior is not on this machine.
    """
    multiple = read_size_multiple(find_prior(prior))
    encoded = {"fit": _CROPS, "validate": _CROPS[1:]}
    for name in encoded.get(command, ()):
        size = sizes.get(name)
        size = int(size) if isinstance(size, str) and size.isdigit() else size
        if multiple and isinstance(size, int) and size % multiple and size > 0:
            near = " or ".join(str(n) for n in (size // multiple * multiple, -(-size // multiple) * multiple) if n)
            raise UsageError(f"data.{name} {size}: the prior {prior} needs multiples of {multiple} px; take {near}")


def check_scale_factors(model: Any, data: Any) -> None:
    """Refuse a module and data that disagree.

    Raises:
        UsageError: they do.
    """
    if UNKNOWN not in (model, data) and str(model) != str(data):
        raise UsageError(f"model.scale_factor is {model}, data.scale_factor is {data}: make them equal")


def check_checkpoint(path: Any) -> None:
    """Refuse a checkpoint that is not there.

    Raises:
        MegaSRError: it is the name of a file or folder that does not exist.
    """
    if isinstance(path, str) and path not in _WORDS_FOR_CHECKPOINTS and ":" not in path and not Path(path).exists():
        raise no_checkpoint(path)


def check_guidance(name: str) -> None:
    """Refuse an unknown guidance type; torch is imported only where users' modules may have registered it.

    Raises:
        UsageError: there is none of this name.
    """
    from megasr.plugins import has_plugins

    known = guidance_names()
    if name in known:
        return
    if not has_plugins():
        raise unknown_name("guidance type", name, known)
    from megasr.guidance.registry import get_guidance

    get_guidance(name)


def guidance_names() -> list[str]:
    """The names of megasr.guidance.registry."""
    names = []
    for (name, _, _, source, *_), _ in calls("megasr.guidance.registry", "GuidanceType"):
        names += [name, f"oracle_{name}"] if source == "lq" and name != "noise" else [name]
    return names


def data_modules() -> list[str]:
    """The names of the data modules in data_pipelines.datamodules."""
    return [name for name in exported(DATA_MODULES) if name.endswith("DataModule")]


def benchmark_names() -> list[str]:
    """The names of data_pipelines.benchmarks."""
    return [name for (name, *_), _ in calls("data_pipelines.benchmarks", "Benchmark")]


def _is_misspelt_module(name: str) -> bool:
    return name not in benchmark_names() and bool(difflib.get_close_matches(name, data_modules()))


def _is_foreign(key: str, value: Any) -> bool:
    """Whether a value names a class that is neither the project's nor Lightning's."""
    named = key.endswith("class_path") or key.rpartition(".")[2] in _OF_CLASSES
    packages = re.findall(r"([A-Za-z_]\w*)(?:\.\w+)+", str(value)) if named else ()
    return any(package not in (*OWN, "lightning") for package in packages)


def _names(value: Any) -> Sequence[str]:
    """Of a list, or of a string that holds one in any of the ways in which it may be written."""
    if isinstance(value, str):
        return () if value in ("null", "None") else split_names(value.strip("[]()").replace("'", "").replace('"', ""))
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | tuple) else ()


def _read_config(given: str) -> Any:
    """What a file holds, or a text that is a configuration itself; None when it is neither.

    Raises:
        UsageError: there is no such file.
    """
    import yaml

    from megasr.configs import load_yaml

    path = Path(at_home(given))
    if path.suffix in (".yaml", ".yml", ".json") and ":" not in given and not path.exists():
        raise UsageError(f"--config {given}: no such file")
    try:
        return load_yaml(path.read_text(encoding="utf-8-sig") if os.path.isfile(path) else given)
    except (OSError, ValueError, yaml.YAMLError):
        return None  # the parser says why


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _all_keys(known: Mapping[str, Parameter]) -> Iterator[str]:
    for name, parameter in known.items():
        yield name
        yield from (f"{name}.{key}" for key in _all_keys(parameter.fields() or {}))
