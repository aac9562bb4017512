"""Golden numbers: a refactoring must leave the loss of the first 20 steps as it was.

A change of the computation is a new file, made by `python -m tests.golden.test_loss_curve`; the commit says why.
"""

import json
from pathlib import Path

import pytest

from megasr.networks.config import AdapterConfig
from megasr.training.config import OptimizerConfig
from tests.helpers.training import LossCurve, fit, make_batch, make_module

FILE = Path(__file__).with_name("loss_curve.json")
STEPS = 20


def measure() -> list[float]:
    """Losses of the full adapter on the random prior: CPU, float32."""
    adapter = AdapterConfig(guidance=("canny", "superpixel"), image=True, rca=True, saft_width=8)
    module = make_module(adapter=adapter, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=3))
    curve = LossCurve()
    fit(module, make_batch(2), STEPS, callbacks=[curve])
    return curve.losses


@pytest.mark.golden
def test_the_first_20_losses_are_the_stored_ones():
    stored = json.loads(FILE.read_text())
    assert len(stored["losses"]) == STEPS
    assert measure() == pytest.approx(stored["losses"], rel=stored["relative_tolerance"])


if __name__ == "__main__":
    import torch

    losses = measure()
    if FILE.exists():
        for step, (old, new) in enumerate(zip(json.loads(FILE.read_text())["losses"], losses, strict=True)):
            print(f"{step:3d}  {old:.8f}  {new:.8f}  {new - old:+.2e}")
    # CPUs differ in the order of their sums; over 20 steps that grows to about 1e-5.
    made_with = {"torch": torch.__version__.split("+")[0], "precision": "float32", "device": "cpu"}
    record = {"made_with": made_with, "relative_tolerance": 1e-3, "losses": losses}
    FILE.write_text(json.dumps(record, indent=2) + "\n")
