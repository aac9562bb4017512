"""experiments/slurm/train.sbatch on a real SLURM: two tasks are stopped by its signal, queued again, and end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.slurm_cluster import missing_program, slurm_cluster
from tests.helpers.training import prior_folder

pytestmark = pytest.mark.skipif(missing_program() is not None, reason=f"SLURM's {missing_program()} is not installed")
ROOT = Path(__file__).parents[2]
STEPS = 100  # more than are done before the signal comes
RECIPE = """
model:
  prior: {prior}
  adapter: {{controlnet: false, guidance: [canny], saft_width: 8}}
data:
  class_path: PhotoDataModule
  init_args: {{crop_size_px: 32, batch_size: 1, train_samples: 20, eval_samples: 1}}
trainer:
  max_steps: {steps}
  limit_val_batches: 0
  num_sanity_val_steps: 0
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  accelerator: cpu
  strategy: ddp
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_tasks_are_stopped_by_a_signal_queued_again_and_go_on(tmp_path: Path) -> None:
    recipe, folder, log = tmp_path / "recipe.yaml", tmp_path / "run", tmp_path / "job.log"
    recipe.write_text(RECIPE.format(prior=prior_folder(), steps=STEPS))
    with slurm_cluster() as environment:
        environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "PYTHONPATH": str(ROOT)}
        environment |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}

        def slurm(*command: str) -> str:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        def said() -> str:
            state = [slurm("scontrol", "show", "job"), slurm("scontrol", "show", "node"), slurm("sinfo", "-R")]
            logs = [log, Path(environment["SLURM_CONF"]).with_name("slurmctld.log")]
            return "\n".join([*state, *(path.read_text()[-3000:] for path in logs if path.is_file())])

        options = ["--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0", "--time=10", f"--output={log}"]
        script = str(ROOT / "experiments" / "slurm" / "train.sbatch")
        job = slurm("sbatch", "--parsable", *options, script, str(folder), "--config", str(recipe)).strip()
        _wait(lambda: (folder / "last.ckpt").is_file(), said)  # an epoch is done
        slurm("scancel", "--signal=USR1", job)
        _wait(lambda: "Restarts=1" in slurm("scontrol", "show", "job", job), said)
        stopped_at = _steps(folder)
        assert 0 < stopped_at < STEPS
        _wait(lambda: "JobState=COMPLETED" in slurm("scontrol", "show", "job", job), said)
    assert _steps(folder) == STEPS
    assert f"stopped by a signal after {stopped_at} steps" in log.read_text()


def _steps(folder: Path) -> int:
    return int(torch.load(folder / "last.ckpt", weights_only=True)["global_step"])


def _wait(ready: Callable[[], bool], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + 200
    while not ready():
        if time.monotonic() > deadline:
            pytest.fail(f"it never came: {said()}")
        time.sleep(0.3)
