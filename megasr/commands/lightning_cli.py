"""LightningCLI with MegaSRModule: one seed, errors with the nearest valid key, the resolved config in every run."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import data_pipelines.datamodules as datamodules
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from megasr.errors import UsageError, unknown_name
from megasr.training.module import MegaSRModule

_UNKNOWN_KEY = re.compile(
    r"unrecognized arguments: --([^\s=]+)|not accept option '([^']+)'|Option '([^']+)' is not accepted"
)
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)'")


class SaveResolvedConfig(SaveConfigCallback):
    """Writes config.yaml (fit) or config.validate.yaml, config.test.yaml into the run's folder.

    A fit that starts anew refuses a folder that holds another run; one that resumes (ckpt_path) replaces the file.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file when the run starts.

        Raises:
            UsageError: the folder already holds the configuration of another run.
        """
        self.config_filename = "config.yaml" if stage == "fit" else f"config.{stage}.yaml"
        existing = Path(trainer.log_dir or ".") / self.config_filename
        resumes = stage != "fit" or self.config.get("ckpt_path") is not None
        if not resumes and trainer.is_global_zero and existing.is_file():
            raise UsageError(
                f"{existing.parent} already holds a run: resume it with --ckpt_path last, "
                "or give another --trainer.default_root_dir"
            )
        self.overwrite = True
        super().setup(trainer, pl_module, stage)


class MegaSRCLI(LightningCLI):
    """LightningCLI whose arguments are given, not taken from sys.argv, and whose errors are one line."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The module's seed is the run's seed: weights, noise and order come from one number."""
        parser.link_arguments("model.seed", "seed_everything")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`.

        Raises:
            UsageError: instead of jsonargparse's usage text.
        """
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise explain(str(error), self._subcommand_parsers[args[0]].get_defaults().keys()) from error


def explain(message: str, keys: Iterable[str]) -> UsageError:
    """Make one line of jsonargparse's message; an unknown key or class is shown with the nearest valid ones."""
    if match := _UNKNOWN_KEY.search(message):
        got = next(group for group in match.groups() if group)
        owner = _CLASS_PATH.search(message)
        if owner:
            class_name = owner.group(1).rsplit(".", 1)[-1]
            return unknown_name(f"key of {class_name}", got, _parameters(class_name))
        return unknown_name("key", got, keys)
    if match := _UNKNOWN_CLASS.search(message):
        return unknown_name("data module", match.group(1), _data_modules())
    return UsageError(message.split("Given value type:")[0])


def _data_modules() -> dict[str, type]:
    """Name -> class of the project's own data modules."""
    classes = inspect.getmembers(datamodules, inspect.isclass)
    return {name: c for name, c in classes if issubclass(c, LightningDataModule) and c is not LightningDataModule}


def _parameters(class_name: str) -> list[str]:
    known = _data_modules().get(class_name)
    return [] if known is None else [name for name in inspect.signature(known).parameters if name != "self"]


def run_lightning(args: Sequence[str]) -> None:
    """Parse and run `[fit | validate | test, options...]`.

    Raises:
        UsageError: an option, a key of the configuration or a value cannot be used.
    """
    MegaSRCLI(
        MegaSRModule,
        LightningDataModule,
        subclass_mode_data=True,
        args=list(args),
        parser_kwargs={"exit_on_error": False},
        save_config_callback=SaveResolvedConfig,
        trainer_defaults={"default_root_dir": "runs"},
        auto_configure_optimizers=False,
    )
