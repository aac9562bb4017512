"""`--data realsr --root DIR`: benchmark sets by name, and the protocol that goes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megasr.commands.signatures import UNKNOWN
from megasr.errors import UsageError, unknown_name


def expand_benchmark(args: Sequence[str]) -> list[str]:
    """Write the options of a benchmark set out as those of its data module; all others are left as they are.

    Args:
        args: [command, options...] as they were typed; an option's value may follow it or its "=".

    Raises:
        UsageError: one of --data NAME and --root comes without the other, or the command is `fit`.
    """
    from data_pipelines.benchmarks import BENCHMARKS, get_benchmark

    data, root = _find(args, "--data"), _find(args, "--root")
    if data is None or data.value not in BENCHMARKS:
        if root is not None and data is not None:
            raise unknown_name("benchmark", data.value, BENCHMARKS)
        if root is not None:
            raise UsageError(f"--root is the folder of a benchmark: give --data one of {', '.join(BENCHMARKS)} with it")
        return list(args)
    if args[0] == "fit":
        raise UsageError(f"{data.value} is a benchmark: it is not for training, nor for choosing checkpoints")
    expanded = ["--data=BenchmarkDataModule", f"--data.benchmark={data.value}"]
    if root is not None:
        expanded.append(f"--data.root={root.value}")
    elif not any(_name(arg) == "--data.root" for arg in args):
        raise UsageError(f"--data {data.value} needs --root, the folder of its images; {get_benchmark(data.value)}")
    # In the place of --data: the options of the data module that follow must find its class.
    return [
        word
        for i, arg in enumerate(args)
        for word in (expanded if i == data.start else [] if data.covers(i) or (root and root.covers(i)) else [arg])
    ]


def take_protocol_of_benchmark(config: Any, args: Sequence[str], default: str | None) -> None:
    """Measure a benchmark set under its own protocol where no other was chosen.

    Args:
        config: what was parsed; its evaluation.protocol is changed.
        args: the options that were typed; a protocol among them holds.
        default: evaluation.protocol where none was chosen. A file that says the same has not chosen one: every run
            writes it into its own.

    Raises:
        UsageError: there is no such benchmark set.
    """
    name = arguments_of_data(config).get("benchmark")
    typed = any(_name(arg) == "--evaluation.protocol" for arg in args)
    if name is not None and not typed and config.evaluation.protocol == default:
        from data_pipelines.benchmarks import get_benchmark

        config.evaluation.protocol = get_benchmark(name).protocol


def arguments_of_data(config: Any) -> Any:
    """The arguments of a configured data module; none for a class that takes none."""
    return config.data.get("init_args") or {}


def scale_factor_of_data(config: Any) -> Any:
    """The scale factor of a configured data module, UNKNOWN for a class that does not take one.

    Raises:
        UsageError: it is of a benchmark that does not exist.
    """
    arguments = arguments_of_data(config)
    if (benchmark := arguments.get("benchmark")) is not None:
        from data_pipelines.benchmarks import get_benchmark

        return get_benchmark(benchmark).scale_factor
    return arguments.get("scale_factor", UNKNOWN)


@dataclass(frozen=True)
class _Option:
    """An option among the arguments: where it starts, where the next one does, and its value."""

    start: int
    end: int
    value: str

    def covers(self, index: int) -> bool:
        return self.start <= index < self.end


def _name(arg: str) -> str:
    return arg.partition("=")[0]


def _find(args: Sequence[str], option: str) -> _Option | None:
    """An option, None where it is not given; of one that is given twice, the last.

    Raises:
        UsageError: it has no value.
    """
    start = max((i for i, arg in enumerate(args) if _name(arg) == option), default=None)
    if start is None:
        return None
    _, joined, value = args[start].partition("=")
    end = start + (1 if joined else 2)
    if not joined:
        value = next(iter(args[start + 1 : end]), "")
    if not value or value.startswith("--"):
        raise UsageError(f"{option} needs a value")
    return _Option(start, end, value)
