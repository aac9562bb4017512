"""The frozen weights of a config: when a file changes under its name, the config alone does not tell two runs apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megasr.files import file_sha256
from megasr.prior import identify_prior


def identify_weights(model: Mapping[str, Any]) -> dict[str, str | None]:
    """Fingerprints of the files behind a resolved `model` section, without loading them.

    Returns:
        "prior", and where the config has them "vision" (the tower), "init" (the checkpoint to start from), "tagger" and
        "extractor <type>" for every network that makes maps of lq -> 12 hexadecimal digits; the prior's may be None.

    Raises:
        MegaSRError: weights that it names are not on this machine.
        UsageError: a section does not fit.
    """
    found: dict[str, str | None] = {"prior": identify_prior(model["prior"]) if model.get("prior") else None}
    if vision := model.get("vision"):
        from megasr.semantics.clip import VisionConfig

        found["vision"] = _digest(VisionConfig(**vision).weights_file)
    if init := model.get("init"):
        from megasr.training.checkpoint import find_adapter

        found["init"] = _digest(find_adapter(init))
    return found | _tagger(model) | _extractors(model)


def _tagger(model: Mapping[str, Any]) -> dict[str, str | None]:
    tagger = model.get("tagger") or {}
    if tagger.get("kind") == "ram":
        return {"tagger": _digest(Path(tagger["weights"]))}
    if tagger.get("kind") == "clip":
        from megasr.semantics.clip import VisionConfig

        return {"tagger": _digest(VisionConfig(model=tagger["model"], weights=tagger["weights"]).weights_file)}
    return {}


def _extractors(model: Mapping[str, Any]) -> dict[str, str | None]:
    """Of every network that makes maps of lq; rendered scenes bring those of hq themselves."""
    from megasr.guidance.registry import resolve_guidance
    from megasr.guidance.sources import ExtractorConfig, identify_source

    config = ExtractorConfig(**(model.get("extractors") or {}))
    types = resolve_guidance((model.get("adapter") or {}).get("guidance") or ())
    return {f"extractor {g.name}": identify_source(config.source_of(g)) for g in types if g.load and g.source == "lq"}


def _digest(path: Path) -> str:
    return file_sha256(path)[:12]
