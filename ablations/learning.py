"""How the trainings of a study learn: runs of a seed share batches and noise, so differences show what losses hide."""

from __future__ import annotations

import pandas as pd

from ablations.results import StudyResult
from ablations.train import read_losses

_WINDOW = 5  # a running mean over this part of the training


def learning_curves(result: StudyResult) -> tuple[pd.DataFrame, str, str]:
    """Learning curves, one column each over the steps, a name for their axis, and a sentence on what they show.

    Where several ablations are trained, there is one curve for each: the training loss minus the reference's of the
    same seed and step, as a running mean over a fifth of the training, averaged over seeds. Single losses vary with
    timesteps and noise many times more than ablations differ. Else each training's loss is shown as it is.
    """
    reference = result.study.reference.name
    losses = {(run.ablation, run.seed): read_losses(result.output / run.run_id) for run in result.runs}
    series = {key: pd.Series({int(step): loss for step, loss in rows}) for key, rows in losses.items() if rows}
    curves = {}
    for ablation in result.study.ablations:
        pairs = [(series.get((ablation.name, seed)), series.get((reference, seed))) for seed in result.seeds]
        differences = [mine - other for mine, other in pairs if mine is not None and other is not None]
        if differences:
            difference = pd.concat(differences, axis=1).dropna().mean(axis=1)
            curves[ablation.name] = difference.rolling(max(1, len(difference) // _WINDOW)).mean().dropna()
    if not curves:
        plain = {f"{name} s{seed}": one for (name, seed), one in series.items()}
        note = "Training loss as it was logged, not smoothed; the number is the last value."
        return pd.DataFrame(plain), "training loss", note
    note = (
        f"Training loss minus that of {reference} with the same seed, batches and noise: below zero learns more. Mean "
        "over seeds, running mean over a fifth of the steps; the number is the last value."
    )
    return pd.DataFrame(curves), f"training loss minus {reference}'s", note
