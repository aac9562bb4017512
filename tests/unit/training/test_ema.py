"""The moving average against its recursion."""

import lightning
import pytest
import torch

from megasr.errors import UsageError
from megasr.training.callbacks import EMA


class Counting(lightning.LightningModule):
    """One trained number that grows by one per step, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.trained = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.seen_in_validation = []

    def training_step(self, batch, index):
        return -self.trained.sum()

    def validation_step(self, batch, index):
        self.seen_in_validation.append(float(self.trained))

    def configure_optimizers(self):
        return torch.optim.SGD([self.trained], lr=1.0)


def train(ema, **trainer):
    module = Counting()
    loader = torch.utils.data.DataLoader(torch.zeros(4, 1))
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    lightning.Trainer(callbacks=[ema], **settings, **trainer).fit(module, loader, loader)
    return module


def recursion(values, decay):
    average = 0.0
    for n, value in enumerate(values, start=1):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * value
    return average


def test_average_follows_its_recursion_and_validation_sees_it():
    ema = EMA(0.25)
    module = train(ema)
    expected = recursion([1, 2, 3, 4], 0.25)
    assert float(ema.shadow["trained"]) == pytest.approx(expected)
    assert set(ema.shadow) == {"trained"}
    assert module.seen_in_validation == pytest.approx([expected] * 4)
    assert float(module.trained) == 4  # the raw weight is back


def test_gradient_accumulation_averages_once_per_optimizer_step():
    ema = EMA(0.25)
    train(ema, accumulate_grad_batches=2)
    assert float(ema.shadow["trained"]) == pytest.approx(recursion([1, 2], 0.25))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range(decay):
    with pytest.raises(UsageError, match=str(decay)):
        EMA(decay)
