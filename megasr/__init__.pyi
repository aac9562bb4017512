from megasr.evaluation.evaluator import Evaluator as Evaluator
from megasr.guidance.registry import GuidanceType as GuidanceType
from megasr.guidance.registry import register_guidance as register_guidance
from megasr.inference.pipeline import MegaSRPipeline as MegaSRPipeline
from megasr.networks.config import AdapterConfig as AdapterConfig
from megasr.system import MegaSR as MegaSR

__version__: str
__all__ = ["AdapterConfig", "Evaluator", "GuidanceType", "MegaSR", "MegaSRPipeline", "register_guidance"]
