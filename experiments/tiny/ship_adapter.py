"""Make the adapter that ships of a checkpoint of `megasr fit`: `python -m experiments.tiny.ship_adapter --help`.

What only a resumed training needs is left away, and the weights are stored in half precision.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from megasr.training.checkpoint import final_weights, read_checkpoint
from megasr.training.folders import SHIPPED

_KEPT = ("epoch", "global_step", "pytorch-lightning_version", "hyper_parameters", "prior_fingerprint")


def slim(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The part of a checkpoint that a trained adapter is built from, its weights in float16."""
    weights = {name: value.half() for name, value in final_weights(checkpoint, "checkpoint").items()}
    return {name: checkpoint[name] for name in _KEPT} | {"state_dict": weights, "callbacks": {}}


def main() -> None:
    """Read, slim, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="such as runs/survival/warmup/last.ckpt")
    parser.add_argument("--output", type=Path, default=SHIPPED["tiny"], help="default: the shipped file")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(slim(read_checkpoint(options.checkpoint)), options.output)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
