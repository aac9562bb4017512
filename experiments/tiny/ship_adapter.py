"""Make an adapter that ships of a checkpoint of `megasr fit`: `python -m experiments.tiny.ship_adapter --help`.

What only a resumed training needs, and the places of its files, are left away; the weights are stored in half
precision. Beside them goes who made the photographs it was trained on.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from megasr.training.checkpoint import final_weights, read_checkpoint
from megasr.training.folders import SHIPPED

_KEPT = ("epoch", "global_step", "pytorch-lightning_version", "prior_fingerprint")


def slim(checkpoint: dict[str, Any], **sampler: object) -> dict[str, Any]:
    """The part of a checkpoint that a trained adapter is built from, its weights in float16.

    Args:
        checkpoint: as `megasr fit` writes it.
        sampler: changes of model.sampler.
    """
    weights = {name: value.half() for name, value in final_weights(checkpoint, "checkpoint").items()}
    model = checkpoint["hyper_parameters"]
    objective = {**(model.get("objective") or {}), "weights_dir": None}
    model = {**model, "init": None, "objective": objective, "sampler": {**model["sampler"], **sampler}}
    kept = {name: checkpoint[name] for name in _KEPT}
    return {**kept, "hyper_parameters": model, "state_dict": weights, "callbacks": {}}


def credit(photographs: Path) -> str:
    """CSV of the photographs in a folder of experiments.world.photographs, those of one source in a row."""
    rows = defaultdict(list)
    with (photographs / "ATTRIBUTION.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            authors = re.sub(r" <[^>]*>", "", row["authors"])  # names are credit enough, without addresses
            rows[row["licence"], row["package"], authors].append(row["photograph"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["licence", "package", "authors", "photographs"])
    writer.writerows([*source, " ".join(sorted(names))] for source, names in sorted(rows.items()))
    return text.getvalue()


def main() -> None:
    """Read, slim, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="such as runs/tiny/controlnet_only/last.ckpt")
    parser.add_argument("--output", type=Path, default=SHIPPED["tiny"], help="default: the shipped file of `tiny`")
    parser.add_argument("--photographs", type=Path, help="folder of those in its training data")
    parser.add_argument("--color-fix", default="none", help="model.sampler.color_fix of every restoration")
    options = parser.parse_args()
    output: Path = options.output
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(slim(read_checkpoint(options.checkpoint), color_fix=options.color_fix), output)
    if options.photographs:
        (output.parent / "ATTRIBUTION.csv").write_text(credit(options.photographs))
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
