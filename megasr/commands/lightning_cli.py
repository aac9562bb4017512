"""LightningCLI of fit, validate, test and pretrain."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn

import data_pipelines.datamodules  # noqa: F401  --data takes the names of classes that are imported
import megasr.pretraining.autoencoder
import megasr.pretraining.clip
import megasr.pretraining.text_to_image  # noqa: F401
from data_pipelines.benchmarks import BENCHMARKS
from megasr.commands.benchmark_options import (
    arguments_of_data,
    expand_benchmark,
    scale_factor_of_data,
    take_protocol_of_benchmark,
)
from megasr.commands.early import DATA_MODULES, check_crops, check_scale_factors, data_modules
from megasr.commands.shards import tower_name
from megasr.commands.signatures import parameters
from megasr.configs import check_config_files, limit_jsonargparse
from megasr.console import quiet_lightning
from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.files import at_home
from megasr.names import split_names
from megasr.pretraining.module import Export, PretrainingModule
from megasr.semantics.clip import VisionConfig
from megasr.training.checkpoint import CONFIG, GLOBAL_BATCH, find_adapter, plain, refuse_changed_batch
from megasr.training.folders import CHOSEN_BY_TRAINER, refuse_another_run
from megasr.training.last_checkpoint import AsyncCheckpointFiles, CheckpointFiles, use_checkpoint_files
from megasr.training.loggers import trainer_defaults
from megasr.training.module import MegaSRModule
from megasr.training.monitor import TrainingMonitor
from megasr.training.probes import global_batch
from megasr.training.protocol_metrics import ProtocolMetrics
from megasr.training.run import call_trainer
from megasr.training.sharding import ShardedStrategy

_UNKNOWN_KEY = re.compile(
    r"unrecognized arguments: --([^\s=]+)|not accept option '([^']+)'|Option '([^']+)' is not accepted"
)
_LITERAL = re.compile(r"a typing\.Literal\[([^\]]*)\]")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)'")


class SaveResolvedConfig(SaveConfigCallback):
    """Writes config.yaml (fit), config.validate.yaml or config.test.yaml into the run's folder.

    A fit that starts anew refuses a folder that holds another run's checkpoints or numbers; one that resumes
    (ckpt_path) replaces the file.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file when the run starts.

        Raises:
            UsageError: the folder already holds another run.
            MegaSRError: the file cannot be written.
        """
        command = TrainerFn(stage).value
        self.config_filename = "config.yaml" if command == "fit" else f"config.{command}.yaml"
        existing = Path(trainer.log_dir or ".") / self.config_filename
        if trainer.is_global_zero:
            refuse_another_run(existing, resumes=command != "fit" or self.config.get("ckpt_path") is not None)
        self.overwrite = True
        try:
            super().setup(trainer, pl_module, stage)
        except OSError as error:
            raise MegaSRError(f"cannot write {existing}: {error.strerror or error}") from error

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint says what it was made with, wherever it is taken."""
        checkpoint[CONFIG] = plain(self.config.as_dict())
        checkpoint[GLOBAL_BATCH] = global_batch(trainer, getattr(trainer, "datamodule", None))


class OneLineCLI(LightningCLI):
    """LightningCLI whose arguments are given, not taken from sys.argv, and whose errors are one line.

    It runs the command when it is constructed; the folder of a fit is locked until the end.
    """

    def __init__(self, *settings: Any, **named: Any) -> None:
        quiet_lightning()
        with ExitStack() as self._held:
            super().__init__(*settings, **named)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Every command reads the configuration that a fit has written, with all of its options, within limits."""
        limit_jsonargparse()
        super().add_default_arguments_to_parser(parser)
        help_text = "let fit go on from ckpt_path with another configuration than it was trained with"
        parser.add_argument("--allow_changed_config", type=bool, default=False, help=help_text)

    def instantiate_classes(self) -> None:
        """Build trainer, module and data.

        Raises:
            UsageError: the checkpoint is to be read in a way that could run code.
            UsageError, MegaSRError: what a class has to say, without what jsonargparse puts around it.
        """
        options = self.config[self.config.subcommand]
        if options.weights_only is False:
            raise UsageError("--weights_only false lets a checkpoint run code: leave it out, they are read without")
        if options.ckpt_path not in (None, *CHOSEN_BY_TRAINER):
            options.ckpt_path = str(find_adapter(options.ckpt_path))
        try:
            super().instantiate_classes()
        except ValueError as error:
            if isinstance(error.__cause__, UsageError | MegaSRError):
                raise error.__cause__ from None
            raise

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """The trainer, with what a fit records in its folder unless it is told otherwise."""
        command = self.config.subcommand
        config = self.config[command].as_dict()
        defaults = trainer_defaults(command, self.config_init[command], config, self._held)
        trainer = super().instantiate_trainer(**defaults, **settings)
        use_checkpoint_files(trainer)
        return trainer

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`.

        Raises:
            UsageError: instead of jsonargparse's usage text.
        """
        check_config_files(args)
        options = self._subcommand_parsers[args[0]]
        options.allow_abbrev = False  # an abbreviation hides a misspelt key
        try:
            self.config = _all_at_home(parser.parse_args(args))
        except argparse.ArgumentError as error:
            raise explain(str(error), options.get_defaults().keys()) from error
        _list_names(self.config[args[0]])

    def _check_checkpoint(self, command: str) -> None:
        """Check how the checkpoint that trainer_defaults has chosen is read, and what it was trained with.

        Raises:
            UsageError: the strategy or a plugin would run code of it, or a fit's optimizer steps had another number of
                images.
        """
        options, strategy = self.config_init[command], self.trainer.strategy
        if options.ckpt_path is None:
            return
        files = strategy.checkpoint_io
        ours = isinstance(files, CheckpointFiles | AsyncCheckpointFiles)
        reads_by_files = type(strategy).load_checkpoint is Strategy.load_checkpoint
        if not (isinstance(strategy, ShardedStrategy) or (ours and reads_by_files)):
            raise UsageError(
                f"--ckpt_path: {type(strategy).__name__} with {type(files).__name__} can run code of a checkpoint; "
                "take the strategy auto, ddp or megasr's ShardedStrategy, and the plugin AsyncCheckpointFiles"
            )
        path = Path(options.ckpt_path)
        if command == "fit" and path.exists():  # else Lightning is to find one
            refuse_changed_batch(path, global_batch(self.trainer, self.datamodule), options)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it. Raises the error that ended it, whatever else went wrong after that; see FirstError."""
        self._check_checkpoint(subcommand)
        if subcommand == "fit":
            self.config.fit.allow_changed_config = False  # it is no part of the run: the next resume asks again
        call_trainer(self.trainer, super()._run_subcommand, subcommand)

    def _parse_ckpt_path(self) -> None:
        """What was typed or configured holds: Lightning would silently replace it by the checkpoint's hyper-parameters.

        A checkpoint of another adapter is refused when its weights are loaded.
        """


class MegaSRCLI(OneLineCLI):
    """`megasr fit | validate | test`: MegaSRModule with any data module."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What Lightning seeds follows the module's seed; the data have their own."""
        parser.link_arguments("model.seed", "seed_everything")
        parser.add_lightning_class_args(ProtocolMetrics, "evaluation")
        parser.add_lightning_class_args(TrainingMonitor, "monitor")

    def before_instantiate_classes(self) -> None:
        """Check what no single class can.

        Raises:
            UsageError: the module and the data disagree on the scale factor.
        """
        config = self.config[self.config.subcommand]
        check_scale_factors(config.model.scale_factor, scale_factor_of_data(config))

    def instantiate_classes(self) -> None:
        """Build trainer, module and data.

        Raises:
            UsageError: what a class has to say, the prior cannot encode the crops, or the data's baked tokens or
                latents are those of another vision tower or prior.
            MegaSRError: what a class has to say.
        """
        command = self.config.subcommand
        check_crops(command, self.config[command].model.prior, arguments_of_data(self.config[command]))
        super().instantiate_classes()
        baked = getattr(self.datamodule, "baked", None)
        if baked is not None and baked.options.tokens:
            _check_tower(self.config[self.config.subcommand].model.vision, baked.options.tokens)
        if baked is not None and baked.options.latents:
            _check_prior(self.model, baked.options.latents)

    def before_test(self) -> None:
        """Tell the evaluation which configuration its numbers come from."""
        config = self.config.test
        self.config_init.test.evaluation.config = {"model": config.model.as_dict(), "data": config.data.as_dict()}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`, and take the protocol of the benchmark set that they name. Raises as OneLineCLI."""
        super().parse_arguments(parser, args)
        options = self._subcommand_parsers[args[0]]
        take_protocol_of_benchmark(self.config[args[0]], args, options.get_defaults().evaluation.protocol)


def _all_at_home(value: Any) -> Any:
    """at_home of every string in a configuration."""
    if isinstance(value, str):
        return at_home(value)
    if isinstance(value, list):
        return [_all_at_home(one) for one in value]
    if isinstance(value, dict | Namespace):
        for key, one in vars(value).items() if isinstance(value, Namespace) else value.items():
            value[key] = _all_at_home(one)
    return value


def _check_tower(vision: Any, tokens: str) -> None:
    """Refuse to train on baked tokens of one vision tower and to validate with another.

    Raises:
        UsageError: model.vision is another tower than the one that made the tokens, or none.
        MegaSRError: its weights cannot be read.
    """
    file = None if vision is None else VisionConfig(vision.weights, vision.model).weights_file
    found = "not set" if file is None else tower_name(vision.model, file)
    if found != tokens:
        raise UsageError(f"the baked image tokens are those of {tokens}, model.vision is {found}: make them equal")


def _check_prior(module: LightningModule, latents: str) -> None:
    """Refuse to train one prior on the baked latents of another.

    Raises:
        UsageError: the module's prior is not the one that made the latents.
    """
    found = getattr(module, "prior_fingerprint", latents)  # other modules have no use for latents
    if found != latents:
        raise UsageError(
            f"the baked latents are those of the prior {latents}, model.prior is {found}: bake another set with "
            "--latents of this prior"
        )


def explain(message: str, keys: Iterable[str]) -> UsageError:
    """Make one line of jsonargparse's message; an unknown key or class is shown with the nearest valid ones."""
    if match := _UNKNOWN_KEY.search(message):
        got = next(group for group in match.groups() if group)
        owner = _CLASS_PATH.search(message)
        if owner:
            module, _, class_name = owner.group(1).rpartition(".")
            return unknown_name(f"key of {class_name}", got, parameters(module or DATA_MODULES, class_name) or ())
        return unknown_name("key", got, keys)
    if match := _UNKNOWN_CLASS.search(message):
        return unknown_name("data module", match.group(1), [*data_modules(), *BENCHMARKS])
    if "--> seed_everything" in message:
        return UsageError("seed_everything follows model.seed: set that one")
    return UsageError(_LITERAL.sub(r"one of \1", message.split("Given value type:")[0]).replace("Parser key", "key"))


def _list_names(config: Any) -> None:
    """Write names that a file gives as one string ("hed,depth") as a list: equal settings are one configuration."""
    for key in ("model.adapter.guidance", "model.sampler.shown_guidance", "evaluation.metrics"):
        if isinstance(names := config.get(key), str):
            config[key] = list(split_names(names))


class NothingRun(OneLineCLI):
    """Reads and checks a command line to its end, and builds nothing."""

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def instantiate_classes(self) -> None:
        """Nothing is built."""

    def after_instantiate_classes(self) -> None:
        """Nothing was built."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


class ParsedCLI(NothingRun, MegaSRCLI):
    """Reads and checks a recipe as `megasr fit` does."""


def run_lightning(args: Sequence[str]) -> None:
    """Parse and run `[fit | validate | test, options...]`.

    Raises:
        UsageError: an option, a key of the configuration or a value cannot be used.
    """
    _call(MegaSRCLI, args)


def read_fit(args: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of `megasr fit` with these options, as plain data.

    Raises:
        UsageError: an option, a key of the configuration or a value cannot be used.
    """
    return _call(ParsedCLI, ["fit", *args]).config.fit.as_dict()


def _call(cli: type[MegaSRCLI], args: Sequence[str]) -> MegaSRCLI:
    return cli(
        MegaSRModule,
        LightningDataModule,
        subclass_mode_data=True,
        args=expand_benchmark(args),
        parser_kwargs={"exit_on_error": False},
        save_config_callback=SaveResolvedConfig,
        trainer_defaults={"default_root_dir": "runs"},
        auto_configure_optimizers=False,
    )


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
