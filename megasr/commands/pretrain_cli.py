"""LightningCLI over the pretraining modules: `model.class_path` says which, and what was trained is exported."""

from __future__ import annotations

from collections.abc import Sequence

from lightning import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

import data_pipelines.datamodules  # noqa: F401  (a configuration names its classes)
import megasr.training.pretraining.autoencoder
import megasr.training.pretraining.clip
import megasr.training.pretraining.text_to_image  # noqa: F401
from megasr.commands.lightning_cli import OneLineCLI, SaveResolvedConfig
from megasr.training.pretraining.module import Export, PretrainingModule


class PretrainingCLI(OneLineCLI):
    """`megasr pretrain`: any pretraining module with any data module."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What Lightning seeds follows the module's seed."""
        parser.link_arguments("model.init_args.seed", "seed_everything")
        parser.add_lightning_class_args(Export, "export")


def run_pretraining(args: Sequence[str], cli: type[PretrainingCLI] = PretrainingCLI) -> PretrainingCLI:
    """Parse and run a pretraining, or what else `cli` does; returns what was built.

    Raises:
        UsageError: an option, a key of the configuration or a value cannot be used.
    """
    return cli(
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
