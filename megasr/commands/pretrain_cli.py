"""LightningCLI over the pretraining modules: `model.class_path` says which, and what was trained is exported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import data_pipelines.datamodules  # noqa: F401  (a configuration names its classes)
import megasr.training.pretraining.autoencoder
import megasr.training.pretraining.clip
import megasr.training.pretraining.text_to_image  # noqa: F401
from megasr.commands.lightning_cli import SaveResolvedConfig, explain
from megasr.errors import MegaSRError, UsageError
from megasr.training.pretraining.module import Export, PretrainingModule
from megasr.training.run_defaults import trainer_defaults


class PretrainingCLI(LightningCLI):
    """LightningCLI whose arguments are given and whose errors are one line."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What Lightning seeds follows the module's seed."""
        parser.link_arguments("model.init_args.seed", "seed_everything")
        parser.add_lightning_class_args(Export, "export")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`.

        Raises:
            UsageError: instead of jsonargparse's usage text.
        """
        options = self._subcommand_parsers["fit"]
        options.allow_abbrev = False  # an abbreviation hides a misspelt key
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise explain(str(error), options.get_defaults().keys()) from error

    def instantiate_classes(self) -> None:
        """Build trainer, module and data.

        Raises:
            UsageError, MegaSRError: what a class has to say, without what jsonargparse puts around it.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            if isinstance(error.__cause__, UsageError | MegaSRError):
                raise error.__cause__ from None
            raise

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """The trainer, with what a fit records in its folder unless it is told otherwise."""
        defaults = trainer_defaults("fit", self.config_init.fit.trainer, self.config.fit.as_dict())
        return super().instantiate_trainer(**defaults, **settings)

    def _parse_ckpt_path(self) -> None:
        """What was typed or configured holds: Lightning would replace it by the checkpoint's hyper-parameters."""


def run_pretraining(args: Sequence[str]) -> None:
    """Parse and run a pretraining.

    Raises:
        UsageError: an option, a key of the configuration or a value cannot be used.
    """
    PretrainingCLI(
        PretrainingModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=["fit", *args],
        parser_kwargs={"exit_on_error": False},
        save_config_callback=SaveResolvedConfig,
        trainer_defaults={"default_root_dir": "runs"},
        auto_configure_optimizers=False,
    )
