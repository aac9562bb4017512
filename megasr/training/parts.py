"""Where a module's frozen parts come from: their weights on this machine."""

from __future__ import annotations

from megasr.guidance.networks import ExtractorConfig, Networks
from megasr.prior import Prior, load_prior
from megasr.semantics.taggers import Tagger
from megasr.semantics.tags import TaggerConfig, build_tagger
from megasr.semantics.vision import VisionConfig, VisionEncoder


class FrozenParts:
    """Loads what an adapter is trained on. A memory plan replaces it by parts that have sizes and no weights."""

    def prior(self, source: str) -> Prior:
        """See load_prior."""
        return load_prior(source)

    def vision(self, config: VisionConfig | None) -> VisionEncoder | None:
        """The vision tower, None when none is set."""
        return None if config is None else VisionEncoder(config)

    def tagger(self, config: TaggerConfig | None) -> Tagger | None:
        """The tagger, None when none is set."""
        return None if config is None else build_tagger(config)

    def networks(self, config: ExtractorConfig | None) -> Networks:
        """The extractors, which load themselves when they are needed."""
        return Networks(config)
