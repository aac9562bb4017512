"""The frozen weights of a config: two runs with equal settings differ when a file was replaced under its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megasr.files import file_sha256
from megasr.prior import identify_prior


def identify_weights(model: Mapping[str, Any]) -> dict[str, str | None]:
    """Fingerprints of the files that a resolved `model` section names, without loading them.

    Returns:
        "prior", and where the config has them "vision" (the tower), "init" (the checkpoint to start from), "tagger" and
        "extractor <type>" for every extractor that looks at lq -> 12 hexadecimal digits; the prior's may be None.

    Raises:
        MegaSRError: weights that it names are not on this machine.
        UsageError: a section does not fit.
    """
    from megasr.guidance.extract import ExtractorConfig, identify_source
    from megasr.guidance.registry import resolve_guidance
    from megasr.semantics.clip import VisionConfig
    from megasr.training.checkpoint import find_adapter

    weights: dict[str, str | None] = {"prior": identify_prior(model["prior"]) if model.get("prior") else None}
    if vision := model.get("vision"):
        weights["vision"] = _digest(VisionConfig(**vision).weights_file)
    if init := model.get("init"):
        weights["init"] = _digest(find_adapter(init))
    tagger = model.get("tagger") or {}
    if tagger.get("kind") == "ram":
        weights["tagger"] = _digest(Path(tagger["weights"]))
    elif tagger.get("kind") == "clip":
        weights["tagger"] = _digest(VisionConfig(model=tagger["model"], weights=tagger["weights"]).weights_file)
    config = ExtractorConfig(**(model.get("extractors") or {}))
    for guidance in resolve_guidance((model.get("adapter") or {}).get("guidance") or ()):
        if guidance.load and guidance.source == "lq":  # scenes bring the maps of hq themselves
            weights[f"extractor {guidance.name}"] = identify_source(config.source_of(guidance))
    return weights


def _digest(path: Path) -> str:
    return file_sha256(path)[:12]
