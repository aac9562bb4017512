"""A real SLURM on this machine's loopback, of one node: munged, slurmctld and slurmd, started and stopped by a test."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.ranks import free_ports

_DAEMONS = ("munged", "slurmctld", "slurmd")
_COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
_ENVIRONMENT_OF_JOB = ("SLURM_", "SLURMD_", "SBATCH_")  # a test may itself run in a job
_START_S = 60.0


def missing_program() -> str | None:
    """A program of SLURM that is not installed here; None when all are."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return next((name for name in (*_DAEMONS, *_COMMANDS) if shutil.which(name, path=path) is None), None)


@contextmanager
def slurm_cluster(slots: int = 2) -> Iterator[dict[str, str]]:
    """A cluster with `slots` CPUs on one node, whatever the machine has.

    Yields:
        The environment in which SLURM's commands find it.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # short, or the socket's path is too long
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(_config(folder, slots))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # read, though nothing here uses cgroups
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_ENVIRONMENT_OF_JOB)}
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    running = []
    try:
        for command in (munge, ["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", "node"]):
            with (folder / f"{command[0]}.out").open("w") as log:
                running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            _wait((folder / "munge.socket").exists, folder)
        _wait(lambda: "idle" in _said(["sinfo", "-h", "-o", "%t"], environment), folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--user", getpass.getuser(), "--full"], env=environment, capture_output=True)
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _config(folder: Path, slots: int) -> str:
    # A requeued job may start again when its old credential has expired: after two minutes unless told otherwise.
    controller, node = free_ports(2)
    host, user = socket.gethostname(), getpass.getuser()
    return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
MinJobAge=300
KillWait=5
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs={slots} State=UNKNOWN
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
"""


def _said(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def _wait(ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        if time.monotonic() > deadline:
            logs = [path.read_text(errors="replace")[-2000:] for path in (*folder.glob("*.log"), *folder.glob("*.out"))]
            raise RuntimeError("SLURM does not start:\n" + "\n".join(logs))
        time.sleep(0.2)
