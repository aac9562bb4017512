"""SeeSR's own U-Net and ControlNet on the clock, from its checkout and in an interpreter of its own, for comparison.

    SEESR_DIR     a checkout of cswry/SeeSR
    SEESR_PYTHON  an interpreter with the libraries that it needs (diffusers 0.21, transformers 4.33, numpy 1)

This file is both ends of a pipe: the benchmark starts it as a child with that interpreter, in which nothing of megasr
can be imported, and tells it over stdin to do one step; the child answers with the seconds that this step took.
Imports, construction and the first step are not counted. Nothing of theirs is changed or copied: their modules are
built with random weights and called as their training script does, and what it trains is trained here: the ControlNet
and the image attentions of the U-Net.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("SEESR_DIR", "SEESR_PYTHON")
_READY = "ready"


def missing_peer() -> list[str]:
    """The environment variables that name nothing that exists."""
    return [name for name in NAMES if not Path(os.environ.get(name) or "missing").exists()]


class StepTimes:
    """Seconds of one step: of the clock on the wall, and of the processor."""

    def __init__(self, wall_s: float, cpu_s: float) -> None:
        self.wall_s, self.cpu_s = wall_s, cpu_s


def timed(step: Callable[[], Any]) -> StepTimes:
    """Do a step."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return StepTimes(time.perf_counter() - wall, time.process_time() - cpu)


class Worker:
    """A contender in a child process. Use as a context.

    Args:
        command: of the child, which must call `serve`.
        environment: what it gets beyond the parent's.
        limit_s: longest wait for an answer.
    """

    def __init__(self, command: list[str], environment: dict[str, str], limit_s: float) -> None:
        self.limit_s = limit_s
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self._await_line(_READY)

    def step(self, name: str) -> StepTimes:
        """Have the child do one step.

        Raises:
            TimeoutError: it took longer than limit_s.
            RuntimeError: the child has ended.
        """
        assert self.child.stdin is not None
        self.child.stdin.write(name + "\n")
        self.child.stdin.flush()
        answer = json.loads(self._await_line("{"))
        return StepTimes(answer["wall_s"], answer["cpu_s"])

    def close(self) -> None:
        """End the child."""
        self.child.kill()
        self.child.wait()

    def _await_line(self, start: str) -> str:
        """The next line that begins so; libraries print too."""
        assert self.child.stdout is not None
        until = time.monotonic() + self.limit_s
        while select.select([self.child.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            line = self.child.stdout.readline()
            if not line:
                raise RuntimeError(f"the child ended: {self.child.args!r}")
            if line.startswith(start):
                return line
        self.close()
        raise TimeoutError(f"no answer within {self.limit_s:.0f} s")


def serve(steps: dict[str, Callable[[], Any]]) -> None:
    """The child's end: do what stdin names until it closes."""
    print(_READY, flush=True)
    for line in sys.stdin:
        spent = timed(steps[line.strip()])
        print(json.dumps({"wall_s": spent.wall_s, "cpu_s": spent.cpu_s}), flush=True)


def start_seesr(sizes: dict[str, Any], threads: int, limit_s: float) -> Worker:
    """SeeSR in a child; its steps are `train` and `denoise`."""
    command = [os.environ["SEESR_PYTHON"], str(Path(__file__).resolve()), json.dumps(sizes | {"threads": threads})]
    return Worker(command, {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": str(threads)}, limit_s)


def build_steps(sizes: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Their networks and one training and one denoising step of them. Runs in their interpreter only."""
    sys.path.insert(0, os.environ["SEESR_DIR"])
    import torch
    from models.controlnet import ControlNetModel
    from models.unet_2d_condition import UNet2DConditionModel

    torch.set_num_threads(sizes["threads"])
    torch.manual_seed(0)
    unet = UNet2DConditionModel(use_image_cross_attention=True, **sizes["unet"])
    control = ControlNetModel.from_unet(unet, use_image_cross_attention=True)
    unet.requires_grad_(False)
    for name, module in unet.named_modules():
        if name.endswith("image_attentions"):
            module.requires_grad_(True)
    batch, latent = sizes["batch"], sizes["unet"]["sample_size"]
    z_t, timesteps = torch.randn(batch, 4, latent, latent), torch.randint(0, 1000, (batch,))
    text = torch.randn(batch, sizes["text_tokens"], sizes["unet"]["cross_attention_dim"])
    image = torch.randn(batch, sizes["image_tokens"], sizes["image_width"])
    lq_up = torch.rand(batch, 3, 8 * latent, 8 * latent)

    def predict() -> Any:
        tokens = {"encoder_hidden_states": text, "image_encoder_hidden_states": image}
        skips, middle = control(z_t, timesteps, controlnet_cond=lq_up, return_dict=False, **tokens)
        residuals = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
        return unet(z_t, timesteps, **tokens, **residuals).sample

    def train() -> None:
        unet.zero_grad()
        control.zero_grad()
        torch.nn.functional.mse_loss(predict(), z_t).backward()

    return {"train": train, "denoise": torch.no_grad()(predict)}


if __name__ == "__main__":
    serve(build_steps(json.loads(sys.argv[1])))
