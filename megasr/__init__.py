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
import logging
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
