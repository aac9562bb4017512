"""Questions in, answers out: studies, their runs, the statistics and the report.

>>> from ablations import Ablation, Study
>>> study = Study(
...     name="my_steps",
...     question="Do more sampling steps restore better?",
...     reference=Ablation("steps20", {"model.sampler.num_steps": 20}, ("model.sampler",), "20 steps"),
...     ablations=(Ablation("steps8", {"model.sampler.num_steps": 8}, ("model.sampler",), "8 steps"),),
...     primary_metric="psnr_y",
... )

`run_study(study, recipe, folder)` trains and measures what is not yet there, `tidy(result)` is a DataFrame of every
score; `megasr study` does it in the shell.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__all__ = ["Ablation", "Study", "register_study", "run_study", "tidy"]
_PLACES = {
    "Ablation": "ablations.registry.Ablation",
    "Study": "ablations.registry.Study",
    "register_study": "ablations.registry.register",
    "tidy": "ablations.results.tidy",
}


def run_study(study: Any, recipe: Path, output: Path, **options: Any) -> Any:
    """Run a Study, or a registered one by its name, on the devices of this machine.

    Args:
        study: a Study, or a name.
        recipe: the YAML file that its ablations change.
        output: folder of the runs; those that are finished are not repeated.
        options: of ablations.runner.open_study: seeds, steps, protocol.

    Returns:
        ablations.results.StudyResult.
    """
    from ablations.launch.local import LocalExecutor, make_slots
    from ablations.runner import open_study

    opened = open_study(study, recipe, output, **options)
    return opened.run(LocalExecutor(make_slots(devices_per_slot=opened.devices)))


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)
