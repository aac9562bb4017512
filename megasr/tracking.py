"""Weights & Biases: the login, and opening runs. Never asks a question, never stops a run.

The mode is WANDB_MODE or WANDB_DISABLED, else what `wandb offline` or `wandb disabled` has switched to, else online for
who is logged in, else offline (`wandb sync` sends the files in the run's folder later).
"""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from megasr.errors import UsageError, first_line

_MODES = {"online": "online", "offline": "offline", "disabled": "disabled", "run": "online", "dryrun": "offline"}
_CONNECT_S = 20
_FLUSH = "x_transaction_log_flush_interval"  # seconds for which W&B keeps records in memory; 15 unless it is set
PROJECT = "megasr"
_LONGEST_NAME = 128  # of an artifact
_LOG_MODEL = {"": False, "0": False, "false": False, "end": True, "1": True, "true": True}


def wandb_mode() -> str:
    """online, offline or disabled. Raises UsageError when WANDB_MODE is something else."""
    mode, _ = _choice()
    if mode and mode not in _MODES:
        raise UsageError(f"WANDB_MODE is {mode!r}; known: {', '.join(_MODES)}")
    return _MODES.get(mode, "online" if _account() else "offline")


def logs_model() -> bool:
    """Whether WANDB_LOG_MODEL, which other trainers read too, asks for weights as W&B artifacts; not by default.

    Raises:
        UsageError: it is something else than end (or true) and false.
    """
    if (asked := os.environ.get("WANDB_LOG_MODEL", "").lower()) not in _LOG_MODEL:
        raise UsageError(f"WANDB_LOG_MODEL is {asked!r}; known: end (weights are logged when a run ends), false")
    return _LOG_MODEL[asked]


def log_artifact(run: Any, name: str, kind: str, files: Iterable[Path]) -> None:
    """Log files and folders as one W&B artifact of a run; what it needs to be sent is copied to where W&B stages."""
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name)[:_LONGEST_NAME], type=kind)
    for path in files:
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path), name=path.name)
    run.log_artifact(artifact)


@contextlib.contextmanager
def staged_in(folder: Path | str) -> Iterator[None]:
    """Keep what waits to be sent with the run's files: W&B would put it into the user's home."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]


def describe_wandb() -> str:
    """The mode and what set it, for `megasr doctor`."""
    try:
        mode = wandb_mode()
    except UsageError as error:
        return str(error)
    if chosen_by := _choice()[1]:
        return f"{mode} ({chosen_by})"
    return f"{mode}, {_account() or 'not logged in (`wandb login`); `wandb sync` sends later what a run has recorded'}"


def _choice() -> tuple[str, str]:
    """(mode, what set it): a variable, or W&B's settings files of the user and of the folder; empty for neither."""
    if mode := os.environ.get("WANDB_MODE", "").lower():
        return mode, "WANDB_MODE"
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled", "WANDB_DISABLED"
    user, here = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb", os.environ.get("WANDB_DIR") or "."
    files = (os.path.expanduser(f"{place}/settings") for place in (user, f"{here}/.wandb", f"{here}/wandb"))
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(files, encoding="utf-8")
    except (OSError, ValueError, configparser.Error):
        return "", ""
    mode = settings.get("default", "mode", fallback="")
    return (mode, f"`wandb {mode}`") if mode in ("offline", "disabled") else ("", "")


def _account() -> str | None:
    """Where the API key is: in the environment, or in the netrc file, where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return "key in WANDB_API_KEY"
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return None
    return f"logged in at {host}" if known else None


class WandbRuns:
    """Opens W&B runs; a mode that failed once is not tried again.

    Args:
        tell: prints one line for the user.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.mode = wandb_mode()
        self._print = tell

    def open(
        self, folder: Path, logger_class: type | None = None, sweep_id: str | None = None, **arguments: Any
    ) -> Any | None:
        """A WandbLogger whose run has started, or None when W&B is disabled or cannot be used (said in one line).

        Args:
            folder: for W&B's files.
            logger_class: a subclass of Lightning's WandbLogger; None is that one.
            sweep_id: of the W&B sweep that the run is a point of.
            arguments: of the class, and through it of wandb.init.
        """
        while self.mode != "disabled":
            try:
                return _start(folder, self.mode, logger_class, sweep_id, arguments)
            except Exception as error:  # W&B raises its own, requests' and the operating system's errors
                online, reason = self.mode == "online", first_line(error)
                self.mode = "offline" if online else "disabled"
                text = f"be used online ({reason}); logging offline into {folder.parent}"
                self._print(f"W&B cannot {text if online else f'log ({reason}); going on without it'}")
        return None


def _start(folder: Path, mode: str, logger_class: type | None, sweep_id: str | None, arguments: dict[str, Any]) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    if os.environ.get("WANDB_MODE") == "":
        del os.environ["WANDB_MODE"]  # W&B takes it for a mode that it does not know
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK):  # its service would print its log instead of writing it there
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder))
    if home == "~":  # not known, and then nothing is logged at all
        os.environ.setdefault("WANDB_CONFIG_DIR", str(folder))
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    folder.mkdir(parents=True, exist_ok=True)
    # Not as the logger's `offline`, which would change WANDB_MODE; and no run becomes the process's one and only.
    settings = wandb.Settings(mode=mode, silent=True, console="off", init_timeout=_CONNECT_S, reinit="create_new")
    if _FLUSH in wandb.Settings.model_fields:  # a killed process loses what is in memory
        setattr(settings, _FLUSH, 1.0)
    wandb.setup(settings)  # silent from here on; the logger's own settings come too late for W&B's first warnings
    settings.sweep_id = sweep_id  # of this run alone: W&B ignores the ids of runs when the process has a sweep
    logger = (logger_class or WandbLogger)(
        project=os.environ.get("WANDB_PROJECT", PROJECT), save_dir=folder, settings=settings, **arguments
    )
    logger.experiment  # noqa: B018  starts the run, so that a failure shows here
    return logger
