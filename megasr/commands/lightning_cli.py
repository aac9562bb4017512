"""LightningCLI of fit, validate, test and pretrain."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from data_pipelines.benchmarks import BENCHMARKS, get_benchmark
from data_pipelines.data_module import choose_crop
from megasr.commands.early import NAME_LISTS, read_settings
from megasr.commands.schema import DATA_MODULES, class_schema, data_modules
from megasr.commands.shards import tower_name
from megasr.console import quiet_lightning
from megasr.errors import MegaSRError, UsageError, split_names, unknown_name
from megasr.files import at_home
from megasr.plugins import import_plugins
from megasr.pretraining.module import Export, PretrainingModule
from megasr.semantics.clip import VisionConfig
from megasr.training.checkpoint import CONFIG, GLOBAL_BATCH, find_adapter, plain, refuse_changed_batch
from megasr.training.folders import CHOSEN_BY_TRAINER, refuse_another_run
from megasr.training.last_checkpoint import AsyncCheckpointFiles, CheckpointFiles, use_checkpoint_files
from megasr.training.loggers import call_trainer, trainer_defaults
from megasr.training.module import MegaSRModule
from megasr.training.monitor import TrainingMonitor
from megasr.training.probes import global_batch
from megasr.training.protocol_metrics import ProtocolMetrics
from megasr.training.sharding import ShardedStrategy
from megasr.weights.local import find_prior, read_sizes

_UNKNOWN_KEY = re.compile(
    r"unrecognized arguments: --([^\s=]+)|not accept option '([^']+)'|Option '([^']+)' is not accepted"
)
_LITERAL = re.compile(r"a typing\.Literal\[([^\]]*)\]")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)'")


class SaveResolvedConfig(SaveConfigCallback):
    """Writes config.yaml (fit), config.validate.yaml or config.test.yaml into the run's folder.

    A fit that does not resume refuses a folder with another run's checkpoints or numbers (UsageError).
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file when the run starts."""
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
        """Put the configuration and the global batch into the checkpoint."""
        checkpoint[CONFIG] = plain(self.config.as_dict())
        checkpoint[GLOBAL_BATCH] = global_batch(trainer, getattr(trainer, "datamodule", None))


class OneLineCLI(LightningCLI):
    """LightningCLI whose errors are one line. Constructing it runs the command and locks the folder of a fit."""

    def __init__(self, *settings: Any, **named: Any) -> None:
        quiet_lightning()
        import_plugins()
        with ExitStack() as self._held:
            super().__init__(*settings, **named)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let every command read the configuration that a fit has written."""
        super().add_default_arguments_to_parser(parser)
        help_text = "let fit go on from ckpt_path with another configuration than it was trained with"
        parser.add_argument("--allow_changed_config", type=bool, default=False, help=help_text)

    def instantiate_classes(self) -> None:
        """Build trainer, module and data. Raises a class's own UsageError or MegaSRError, not jsonargparse's."""
        options = self.config[self.config.subcommand]
        if options.weights_only is False:
            raise UsageError("--weights_only false lets a checkpoint run code: leave it out, they are read without")
        if options.ckpt_path not in (None, *CHOSEN_BY_TRAINER):
            options.ckpt_path = str(find_adapter(options.ckpt_path))
        with _own_errors():
            super().instantiate_classes()

    def instantiate_trainer(self, **settings: Any) -> Trainer:
        """The trainer with the loggers and callbacks of megasr.training.loggers.trainer_defaults."""
        command = self.config.subcommand
        config = self.config[command].as_dict()
        defaults = trainer_defaults(command, self.config_init[command], config, self._held)
        trainer = super().instantiate_trainer(**defaults, **settings)
        use_checkpoint_files(trainer)
        return trainer

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`. Raises UsageError in place of jsonargparse's usage text."""
        list(read_settings(args))  # names the file that is no YAML, as jsonargparse does not
        options = self._subcommand_parsers[args[0]]
        options.allow_abbrev = False  # an abbreviation hides a misspelt key
        try:
            self.config = _all_at_home(parser.parse_args(args))
        except argparse.ArgumentError as error:
            raise explain(str(error), options.get_defaults().keys()) from error
        for key in NAME_LISTS:  # a file may give them as one string: equal settings are one configuration
            if isinstance(names := self.config[args[0]].get(key), str):
                self.config[args[0]][key] = list(split_names(names))

    def _check_checkpoint(self, command: str) -> None:
        """Refuse a strategy or plugin that could run code of the checkpoint, and another global batch (UsageError)."""
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
        """Run it. Raises the first error, whatever else went wrong after that; see FirstError."""
        self._check_checkpoint(subcommand)
        if subcommand == "fit":
            self.config.fit.allow_changed_config = False  # it is no part of the run: the next resume asks again
        call_trainer(self.trainer, super()._run_subcommand, subcommand)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would silently replace the configuration by the checkpoint's hyper-parameters."""


class MegaSRCLI(OneLineCLI):
    """`megasr fit | validate | test`: MegaSRModule with any data module."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let Lightning seed with the module's seed, and declare the evaluation and the monitor."""
        parser.link_arguments("model.seed", "seed_everything")
        parser.add_lightning_class_args(ProtocolMetrics, "evaluation")
        parser.add_lightning_class_args(TrainingMonitor, "monitor")

    def before_instantiate_classes(self) -> None:
        """Refuse a module and data that disagree on the scale factor; set crops that are left open."""
        config = self.config[self.config.subcommand]
        _check_scale_factors(config)
        choose_crop(_data_arguments(config), config.model.prior)

    def instantiate_classes(self) -> None:
        """Build trainer, module and data; refuse crops and baked tokens or latents that do not fit."""
        _check_crops(self.config.subcommand, self.config[self.config.subcommand])
        super().instantiate_classes()
        baked = getattr(self.datamodule, "baked", None)
        if baked is not None and baked.options.tokens:
            _check_tower(self.config[self.config.subcommand].model.vision, baked.options.tokens)
        if baked is not None and baked.options.latents:
            _check_prior(self.model, baked.options.latents)

    def before_test(self) -> None:
        """Put the configuration into the provenance of the evaluation."""
        config = self.config.test
        self.config_init.test.evaluation.config = {"model": config.model.as_dict(), "data": config.data.as_dict()}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`, and take the protocol of the benchmark set that they name."""
        super().parse_arguments(parser, args)
        options = self._subcommand_parsers[args[0]]
        _take_protocol_of_benchmark(self.config[args[0]], args, options.get_defaults().evaluation.protocol)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise a class's own UsageError or MegaSRError in place of the one that jsonargparse makes of it."""
    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, UsageError | MegaSRError):
            raise error.__cause__ from None
        raise


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
    """Refuse baked tokens of another vision tower than model.vision (UsageError)."""
    file = None if vision is None else VisionConfig(vision.weights, vision.model).weights_file
    current = "not set" if file is None else tower_name(vision.model, file)
    if current != tokens:
        raise UsageError(f"the baked image tokens are those of {tokens}, model.vision is {current}: make them equal")


def _check_prior(module: LightningModule, latents: str) -> None:
    """Refuse baked latents of another prior than model.prior (UsageError)."""
    current = getattr(module, "prior_fingerprint", latents)  # other modules have no use for latents
    if current != latents:
        raise UsageError(
            f"the baked latents are those of the prior {latents}, model.prior is {current}: bake another set with "
            "--latents of this prior"
        )


def explain(message: str, keys: Iterable[str]) -> UsageError:
    """Make one line of jsonargparse's message; an unknown key or class is shown with the nearest valid ones."""
    if match := _UNKNOWN_KEY.search(message):
        got = next(group for group in match.groups() if group)
        owner = _CLASS_PATH.search(message)
        if owner:
            module, _, class_name = owner.group(1).rpartition(".")
            known = class_schema(module or DATA_MODULES, class_name).get("properties", ())
            return unknown_name(f"key of {class_name}", got, known)
        return unknown_name("key", got, keys)
    if match := _UNKNOWN_CLASS.search(message):
        return unknown_name("data module", match.group(1), [*data_modules(), *BENCHMARKS])
    if "--> seed_everything" in message:
        return UsageError("seed_everything follows model.seed: set that one")
    return UsageError(_LITERAL.sub(r"one of \1", message.split("Given value type:")[0]).replace("Parser key", "key"))


def expand_benchmark(args: Sequence[str]) -> list[str]:
    """Write `--data NAME --root DIR` of a benchmark set as the options of BenchmarkDataModule.

    Args:
        args: [command, options...] as they were typed.

    Raises:
        UsageError: one of --data NAME and --root comes without the other, or the command is `fit`.
    """
    words: list[str] = []
    for arg in args:  # each option with its value in one word
        bare = words and words[-1] in ("--data", "--root") and not arg.startswith("--")
        words = [*words[:-1], f"{words[-1]}={arg}"] if bare else [*words, arg]
    data, root = (
        next((w for w in reversed(words) if w.partition("=")[0] == name), "") for name in ("--data", "--root")
    )
    name, folder = data.partition("=")[2], root.partition("=")[2]
    for option, value in ((data, name), (root, folder)):
        if option and not value:
            raise UsageError(f"{option} needs a value")
    if name not in BENCHMARKS:
        if root and data:
            raise unknown_name("benchmark", name, BENCHMARKS)
        if root:
            raise UsageError(f"--root is the folder of a benchmark: give --data one of {', '.join(BENCHMARKS)} with it")
        return list(args)
    if args[0] == "fit":
        raise UsageError(f"{name} is a benchmark: it is not for training, nor for choosing checkpoints")
    if not root and not any(word.startswith("--data.root") for word in words):
        raise UsageError(f"--data {name} needs --root, the folder of its images; {get_benchmark(name)}")
    expanded = ["--data=BenchmarkDataModule", f"--data.benchmark={name}", *([f"--data.root={folder}"] if root else [])]
    # In the place of --data: the options of the data module that follow must find its class.
    return [w for word in words for w in (expanded if word == data else [] if word == root else [word])]


def _take_protocol_of_benchmark(config: Any, args: Sequence[str], default: str | None) -> None:
    """Measure a benchmark set under its own protocol, unless another was typed.

    A file that names the default has not chosen it: every run writes it into its own.
    """
    name = _data_arguments(config).get("benchmark")
    typed = any(arg.partition("=")[0] == "--evaluation.protocol" for arg in args)
    if name is not None and not typed and config.evaluation.protocol == default:
        config.evaluation.protocol = get_benchmark(name).protocol


def _data_arguments(config: Any) -> Any:
    return config.data.get("init_args") or {}


def _check_scale_factors(config: Any) -> None:
    """Refuse a module and data that disagree (UsageError)."""
    arguments, model = _data_arguments(config), config.model.scale_factor
    benchmark = arguments.get("benchmark")
    data = get_benchmark(benchmark).scale_factor if benchmark else arguments.get("scale_factor", model)
    if model != data:
        raise UsageError(f"model.scale_factor is {model}, data.scale_factor is {data}: make them equal")


def _check_crops(command: str, config: Any) -> None:
    """Refuse crops that the prior cannot encode, before it is loaded (UsageError); `test` restores any size."""
    encoded = {"fit": ("crop_size_px", "eval_crop_size_px"), "validate": ("eval_crop_size_px",)}
    sizes = read_sizes(find_prior(config.model.prior))
    multiple = sizes and sizes.multiple
    for name in encoded.get(command, ()):
        size = _data_arguments(config).get(name) or 0
        if multiple and size > 0 and size % multiple:
            near = " or ".join(str(n) for n in (size // multiple * multiple, -(-size // multiple) * multiple) if n)
            raise UsageError(
                f"data.{name} {size}: the prior {config.model.prior} needs multiples of {multiple} px; take {near}"
            )


class NothingRun(OneLineCLI):
    """Reads and checks a command line to its end, and builds nothing."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Nothing was built."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class ParsedCLI(NothingRun, MegaSRCLI):
    """Reads and checks a recipe as `megasr fit` does."""


class DataCLI(ParsedCLI):
    """Reads and checks a recipe as `megasr fit` does, and builds its data module alone."""

    def instantiate_classes(self) -> None:
        """Build the data module. Raises its own UsageError or MegaSRError."""
        options = self.config[self.config.subcommand]
        with _own_errors():
            built = self._parser(self.config.subcommand).instantiate_classes(Namespace(data=options.data))
        self.datamodule = built.data


class PretrainingCLI(OneLineCLI):
    """`megasr pretrain`: any pretraining module with any data module."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let Lightning seed with the module's seed, and declare the export."""
        parser.link_arguments("model.init_args.seed", "seed_everything")
        parser.add_lightning_class_args(Export, "export")


_SETTINGS: dict[str, Any] = {
    "subclass_mode_data": True,
    "parser_kwargs": {"exit_on_error": False},
    "save_config_callback": SaveResolvedConfig,
    "trainer_defaults": {"default_root_dir": "runs"},
    "auto_configure_optimizers": False,
}


def run_lightning(args: Sequence[str]) -> None:
    """Parse and run `[fit | validate | test, options...]`.

    Raises:
        UsageError: an option, a key of the configuration or a value cannot be used.
    """
    _call(MegaSRCLI, args)


def read_fit(args: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of `megasr fit` with these options, as plain data; raises as run_lightning."""
    return _call(ParsedCLI, ["fit", *args]).config.fit.as_dict()


def read_data(args: Sequence[str]) -> tuple[dict[str, Any], LightningDataModule]:
    """read_fit, and the data module, built; raises as run_lightning."""
    cli = _call(DataCLI, ["fit", *args])
    return cli.config.fit.as_dict(), cli.datamodule


def _call(cli: type[MegaSRCLI], args: Sequence[str]) -> MegaSRCLI:
    return cli(MegaSRModule, LightningDataModule, args=expand_benchmark(args), **_SETTINGS)


def run_pretraining(args: Sequence[str], cli: type[PretrainingCLI] = PretrainingCLI) -> PretrainingCLI:
    """Parse and run a pretraining, or what else `cli` does; returns what was built. Raises as run_lightning."""
    return cli(PretrainingModule, LightningDataModule, subclass_mode_model=True, args=["fit", *args], **_SETTINGS)
