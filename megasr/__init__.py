"""MegaSR: real-world image super-resolution with a frozen text-to-image prior and customised guidance.

Architecture: arXiv 2503.08096 v2, figure 2, with the choices that the figure leaves open made by config fields.
The names in `__all__` are the public API; each is imported when it is first used. Studies are in `ablations`.

>>> import torch
>>> from megasr import Evaluator, GuidanceType, register_guidance
>>> def extract_red(image, keys):  # (B, 3, H, W) in [0, 1] -> (B, 1, H, W) in [0, 1]
...     return image[:, :1]
>>> register_guidance(GuidanceType("red", "region", 1, "lq", "the red channel", formula=extract_red))
>>> from megasr import AdapterConfig, MegaSR
>>> MegaSR("tiny", AdapterConfig(guidance="red")).network.groups.aggregated[0].name
'red'
>>> from megasr.evaluation.protocol import get_protocol
>>> evaluator = Evaluator(get_protocol("weight-free-v1"), metrics=["psnr_y"])
>>> hq = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
>>> 40 < evaluator.vectors((hq + 0.005).clamp(0, 1), hq, ["photo"]).item() < 60
True
"""

import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
import types
import warnings
from typing import Any

# transformers imports bitsandbytes, which advises at every start to install a package that nothing here has a use for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
__all__ = ["AdapterConfig", "Evaluator", "GuidanceType", "MegaSR", "MegaSRPipeline", "register_guidance"]
_PLACES = {
    "AdapterConfig": "megasr.networks.config.AdapterConfig",
    "Evaluator": "megasr.evaluation.evaluator.Evaluator",
    "GuidanceType": "megasr.guidance.registry.GuidanceType",
    "MegaSR": "megasr.system.MegaSR",
    "MegaSRPipeline": "megasr.inference.pipeline.MegaSRPipeline",
    "register_guidance": "megasr.guidance.registry.register_guidance",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules that configurations name by their places of version 0.1; to be dropped with version 0.3."""

    places = {
        "megasr.training.pretraining": "megasr.pretraining",
        "megasr.training.strategies": "megasr.training.sharding",
        "megasr.training.async_checkpoint": "megasr.training.last_checkpoint",
    }

    def place(self, name: str) -> str | None:
        """Where a module of this name is now; None for those that have not moved."""
        old = next((old for old in self.places if name == old or name.startswith(f"{old}.")), None)
        return None if old is None else self.places[old] + name.removeprefix(old)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """A spec for a module that has moved."""
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if self.place(name) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """None, for importlib's own."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Let the old name stand for the module at its new place."""
        old, new = module.__name__, str(self.place(module.__name__))
        warnings.warn(f"{old} is {new} now; change the configuration", FutureWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)


sys.meta_path.insert(0, _Moved())
