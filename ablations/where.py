"""Where a guidance type helps: its gain on the images whose maps show much, and on those whose maps show little."""

from __future__ import annotations

import numpy as np

from ablations.results import StudyResult, values
from ablations.statistics import paired_differences
from megasr.evaluation.intervals import paired_bootstrap, photograph
from megasr.images import read_image
from megasr.rng import numpy_generator

_LEAST = 4  # photographs in each half


def where_it_helps(result: StudyResult) -> list[str]:
    """A sentence per ablation that shows one guidance type: its differences to the reference in both halves of the set.

    The halves are those above and below the median of what a map shows, its standard deviation over pixels: an empty
    map, as an edge detector gives of a plain wall, can say nothing. Exploratory; a negative control is left out.
    """
    study, metric = result.study, result.study.primary_metric
    lines = []
    for ablation in study.ablations:
        runs = result.of(ablation.name, metric)
        folder = result.primary_set.folder(result.output / runs[0].run_id) / "maps"
        if study.controls.get(ablation.name) == "negative" or not folder.is_dir():
            continue
        both = ([values(run, metric) for run in of] for of in (runs, result.of(study.reference.name, metric)))
        differences, keys = paired_differences(*both)
        files = [folder / f"{key}.png" for key in keys]
        if absent := sum(not file.is_file() for file in files):  # deleted, or images of before maps were written
            lines.append(f"Where {ablation.name} helps is not said: {absent} of {len(files)} maps are not in {folder}.")
            continue
        shown = np.array([read_image(file).mean(2).std() for file in files])
        halves = shown > np.median(shown), shown <= np.median(shown)
        if any(len({photograph(keys[i]) for i in np.flatnonzero(half)}) < _LEAST for half in halves):
            continue
        texts = []
        for name, half in zip(("most", "least"), halves, strict=True):
            chosen = [keys[i] for i in np.flatnonzero(half)]
            generator = numpy_generator(0, "where", study.name, ablation.name, name)
            interval = paired_bootstrap(differences[:, half], chosen, generator)
            numbers = f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
            texts.append(f"{numbers} on the {len(chosen)} images whose maps show {name}")
        lines.append(f"Where {ablation.name} helps (differences in {metric}, exploratory): {', '.join(texts)}.")
    return lines
