"""How the trainings of a study learn: runs of a seed share batches and noise, so differences show what losses hide."""

from __future__ import annotations

import numpy as np

from ablations.page.content import Curve
from ablations.results import StudyResult
from ablations.train import read_losses

_WINDOW = 5  # a running mean over this part of the training
PLAIN = ("training loss", "Training loss as it was logged, not smoothed; the number is the last value.")


def learning_curves(result: StudyResult) -> tuple[list[Curve], tuple[str, str]]:
    """Curves, and what they show: a name for the axis and a sentence.

    Where several ablations are trained, there is one curve for each: the training loss minus the reference's of the
    same seed and step, as a running mean over a fifth of the training, averaged over seeds. Single losses vary with
    timesteps and noise many times more than ablations differ. Else each training's loss is shown as it is.
    """
    study = result.study
    losses = {(run.ablation, run.seed): read_losses(result.output / run.run_id) for run in result.runs}
    losses = {key: found for key, found in losses.items() if found}
    compared = {
        ablation.name: [
            (np.array(losses[ablation.name, seed]), np.array(losses[study.reference.name, seed]))
            for seed in result.seeds
            if (ablation.name, seed) in losses and (study.reference.name, seed) in losses
        ]
        for ablation in study.ablations
    }
    compared = {
        name: pairs
        for name, pairs in compared.items()
        if pairs and all(_same_steps(*pair, *pairs[0]) for pair in pairs)
    }
    if not compared:
        return [_plain(f"{name} s{seed}", found) for (name, seed), found in losses.items()], PLAIN
    curves = [_difference(name, pairs) for name, pairs in compared.items()]
    note = (
        f"Training loss minus that of {study.reference.name} with the same seed, batches and noise: below zero learns "
        f"more. Mean over seeds, running mean over a fifth of the steps; the number is the last value."
    )
    return curves, (f"training loss minus {study.reference.name}'s", note)


def _same_steps(*found: np.ndarray) -> bool:
    return all(np.array_equal(one[:, 0], found[0][:, 0]) for one in found)


def _plain(label: str, losses: list[list[float]]) -> Curve:
    return Curve(label, [int(step) for step, _ in losses], [loss for _, loss in losses])


def _difference(label: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Curve:
    steps = pairs[0][0][:, 0].astype(int)
    difference = np.mean([own[:, 1] - reference[:, 1] for own, reference in pairs], axis=0)
    window = max(1, len(steps) // _WINDOW)
    running = np.convolve(difference, np.full(window, 1 / window), mode="valid")
    return Curve(label, steps[window - 1 :].tolist(), running.tolist())
