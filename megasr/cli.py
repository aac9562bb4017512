"""The `megasr` command: the parser of all commands, and exit codes.

0: done. 1: something is missing, broken or not permitted. 2: what was typed or configured cannot be used. 130: Ctrl-C.
Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from megasr import __version__
from megasr.commands import adapter, compare, doctor, embed, evaluate, shards, study, training, upscale, weights
from megasr.console import quiet_warnings
from megasr.errors import MegaSRError, UsageError, printable, split_names
from megasr.plugins import VARIABLE, module_name, use_working_directory

COMMANDS = (training, study, upscale, adapter, evaluate, compare, shards, embed, weights, doctor)


class Parser(argparse.ArgumentParser):
    """argparse that takes no abbreviations, and raises instead of printing its usage and exiting."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse has to say as a UsageError."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser() -> Parser:
    """The parser of every command. `fit`, `validate` and `test` leave their options to LightningCLI."""
    parser = Parser(prog="megasr", description="Real-world image super-resolution with guided diffusion priors.")
    parser.add_argument("--version", action="version", version=f"megasr {__version__}")
    modules = "import these modules of yours first: they add to the registries, or hold classes of the configuration"
    parser.add_argument("--import", dest="modules", default="", metavar="MODULE|FILE.py[,...]", help=modules)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse and run one command. Errors travel up as exceptions."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    _add_plugins(arguments.modules)
    if arguments.passes_options_on:
        arguments.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.run(arguments)


def _add_plugins(modules: str) -> None:
    """Name the modules of --import in MEGASR_IMPORT, which the processes of this command inherit.

    The working directory is importable, as with `python -m`: class_paths of a configuration may lie there.
    """
    use_working_directory()
    for name in split_names(modules):
        module = module_name(name)
        with suppress(ImportError, ValueError):
            if importlib.util.find_spec(module) is not None:
                continue
        raise UsageError(f"--import {name}: no such module in {os.getcwd()} or among the installed packages")
    given = (*split_names(os.environ.get(VARIABLE, "")), *split_names(modules))
    names = dict.fromkeys(os.path.abspath(name) if name.endswith(".py") else name for name in given)
    if names:
        os.environ[VARIABLE] = ",".join(names)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: sys.argv) and return its exit code; one line on stderr says what went wrong."""
    _make_robust()
    if argv is None:  # the process is this command's alone
        quiet_warnings()
        _share_cores()
    try:
        run(sys.argv[1:] if argv is None else argv)
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else int(exit_request.code is not None)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except UsageError as error:
        return _fail(str(error), 2)
    except (MegaSRError, OSError) as error:
        return _fail(str(error), 1)
    except Exception as error:  # a defect: still one line, and the way to the traceback
        return _fail(f"{type(error).__name__}: {error} (MEGASR_DEBUG=1 shows the traceback)", 1)
    return 0


def _make_robust() -> None:
    """Let stdout escape characters that it cannot encode, and silence matplotlib where its cache cannot be written."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8, nor terminals
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # other libraries import it, nothing here draws with it


def _share_cores() -> None:
    """Let threads that wait for each other sleep sooner: torch's OpenMP reads this when it is loaded.

    It spins 300,000 rounds by default, on cores that other programs want. `upscale` of one image, two cores of an
    Intel Xeon, 2026-11-30: 20 s against 38 beside three busy processes, 12.9 against 12.5 on an idle machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _fail(message: str, code: int) -> int:
    if os.environ.get("MEGASR_DEBUG") == "1":
        traceback.print_exc()
    print(f"megasr: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
