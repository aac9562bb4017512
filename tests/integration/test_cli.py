"""The command line as a person meets it: exit codes, one line on stderr, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from megasr import cli
from megasr.commands import doctor
from megasr.errors import MegaSRError, UsageError


def failure(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and the one line on stderr of a command that fails."""
    code = cli.main(argv)
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith("megasr: error: ")]
    assert len(lines) == 1, printed
    assert "Traceback" not in printed
    return code, lines[0]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "the following arguments are required: command"),
        (["studdy"], "invalid choice: 'studdy'"),
        (["doctor", "--bogus"], "unrecognized arguments: --bogus"),
        (["study", "run", "prior_selection"], "required: --output"),
        (["upscale", "a.png", "b.png"], "required: --checkpoint"),
        (["upscale", "absent.png", "b.png", "--checkpoint", "c.ckpt"], "absent.png: no such file or folder"),
        (["upscale", "a.png", "b.png", "--checkpoint", "c.ckpt", "--steps", "many"], "invalid int value: 'many'"),
    ],
)
def test_usage_errors_exit_with_2(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = failure(argv, capsys)
    assert code == 2
    assert says in line


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UsageError("size is 3\n  use 4"), 2, "size is 3 use 4"),
        (MegaSRError("no weights"), 1, "no weights"),
        (PermissionError(13, "Permission denied", "runs/x"), 1, "Permission denied: 'runs/x'"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero (MEGASR_DEBUG=1"),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    got, line = failure(["doctor"], capsys)
    assert got == code
    assert says in line


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGASR_DEBUG", "1")
    assert cli.main(["doctor", "--bogus"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [[], ["study"], ["study", "run"], ["study", "list"], ["upscale"], ["params"], ["doctor"]]
)
def test_help_exits_with_0(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*argv, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['megasr', *argv])}")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from megasr.cli import main; main(['upscale', '--help']); "
        "sys.exit(' '.join({'torch', 'lightning', 'numpy', 'diffusers', 'PIL'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_waiting_threads_leave_the_cores_to_other_programs_unless_the_user_says_otherwise(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    cli.main(["upscale", "--help"])
    assert os.environ.get("GOMP_SPINCOUNT") == given.get("GOMP_SPINCOUNT")  # a caller's own process is left alone
    monkeypatch.setattr(sys, "argv", ["megasr", "upscale", "--help"])
    cli.main()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_doctor_reports_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    report = capsys.readouterr().out
    for word in ("torch ", "pyiqa", "cpu", "W&B", "offline (WANDB_MODE)", "tiny", "sd21-base", "Open RAIL++-M"):
        assert word in report
    assert "missing" not in report


def test_params_counts_the_sites_of_stable_diffusion_without_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["params", "--image", "--guidance", "canny"]) == 0
    sites = {line[:18].strip(): line[18:].split()[0] for line in capsys.readouterr().out.splitlines()}
    assert (sites["U-Net CSM"], sites["U-Net MSFM"]) == ("16", "16")
    assert (sites["ControlNet CSM"], sites["ControlNet MSFM"]) == ("7", "7")
    assert cli.main(["params", "--prior", "sd35-medium", "--lq-stream"]) == 0
    sites = {line[:18].strip(): line[18:].split()[0] for line in capsys.readouterr().out.splitlines()}
    assert sites["MMDiT LQ stream"] == "24" and "ControlNet" not in sites


def test_params_counts_wider_saft_and_finer_maps(capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for options in ([], ["--saft-width", "32"], ["--map-patch", "4"]):
        assert cli.main(["params", "--prior", "tiny", "--guidance", "canny", *options]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("U-Net MSFM"))
        counts.append(int(line.split()[3].replace(",", "")))
    default, narrow, fine = counts
    assert narrow < default < fine
