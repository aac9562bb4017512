"""The progress of a training, a validation and a test, where there is no terminal."""

from __future__ import annotations

import lightning
import pytest
import torch

from megasr.training.callbacks import StepProgress
from tests.helpers.training import Repeat, make_batch, make_module, take


@pytest.fixture
def trainer() -> lightning.Trainer:
    return lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_train_batches=4,
        limit_val_batches=2,
        limit_test_batches=2,
        accumulate_grad_batches=2,
        callbacks=[StepProgress()],
    )


def test_every_command_says_how_far_it_is(trainer: lightning.Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    module, batch = make_module(), take(make_batch(), [0])
    loader = torch.utils.data.DataLoader(Repeat(batch), batch_size=None)
    trainer.fit(module, loader, loader)
    assert "training  2/2  " in capsys.readouterr().err
    trainer.validate(module, loader, verbose=False)
    assert "validating  2/2" in capsys.readouterr().err
    trainer.test(module, loader, verbose=False)
    assert "restoring and measuring  2/2" in capsys.readouterr().err


def test_other_processes_say_nothing(trainer: lightning.Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    (progress,) = (callback for callback in trainer.callbacks if isinstance(callback, StepProgress))
    module = make_module()
    progress.setup(trainer, module, "fit")
    progress.disable()
    progress._show("training", 2, 2)
    progress.enable()
    progress._show("training", 2, 2)
    progress.teardown(trainer, module, "fit")
    assert capsys.readouterr().err.count("training  2/2") == 1
