"""Who is logged in at W&B, and what follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from megasr.errors import UsageError
from megasr.tracking import describe_wandb, wandb_mode

VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DISABLED", "WANDB_DIR")
KEPT = "machine wandb.example.org login user password x\n"


@pytest.mark.parametrize(
    ("environment", "mode", "says"),
    [
        ({}, "offline", "offline, not logged in (`wandb login`)"),
        ({"WANDB_API_KEY": "x"}, "online", "online, key in WANDB_API_KEY"),
        ({"WANDB_BASE_URL": "https://wandb.example.org/"}, "online", "online, logged in at wandb.example.org"),
        ({"WANDB_BASE_URL": "https://other.example.org"}, "offline", "not logged in"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline", "offline (WANDB_MODE)"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "Disabled"}, "disabled", "disabled (WANDB_MODE)"),
        ({"WANDB_MODE": "online"}, "online", "online (WANDB_MODE)"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": "dryrun"}, "offline", "offline (WANDB_MODE)"),
        ({"WANDB_MODE": "run"}, "online", "online (WANDB_MODE)"),
        ({"WANDB_API_KEY": "x", "WANDB_MODE": ""}, "online", "online, key in WANDB_API_KEY"),
        ({"WANDB_API_KEY": "x", "WANDB_DISABLED": "true"}, "disabled", "disabled (WANDB_DISABLED)"),
        ({"WANDB_MODE": "off"}, None, "WANDB_MODE is 'off'; known: online, offline, disabled"),
    ],
)
def test_the_mode(
    environment: dict[str, str], mode: str | None, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    accounts = tmp_path / "netrc"
    accounts.write_text(KEPT)
    accounts.chmod(0o600)
    monkeypatch.setenv("NETRC", str(accounts))
    assert says in describe_wandb()
    if mode is None:
        with pytest.raises(UsageError, match="WANDB_MODE is 'off'"):
            wandb_mode()
    else:
        assert wandb_mode() == mode


def test_what_wandb_offline_and_disabled_have_switched_to_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both commands write into settings files; the folder's counts more than the user's, and a variable most."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    for folder, mode in (("user", "offline"), ("wandb", "disabled")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "settings").write_text(f"[default]\nentity = 100%\nmode = {mode}\n")
        assert (wandb_mode(), describe_wandb()) == (mode, f"{mode} (`wandb {mode}`)")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode() == "online"
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "wandb" / "settings").write_text("mode = no section\n")
    assert wandb_mode() == "online", "a damaged file says nothing"
