"""Who is logged in at W&B, and what follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from megasr.errors import UsageError
from megasr.tracking import describe_wandb, wandb_mode

VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL")
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
