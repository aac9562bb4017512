"""Where the time of a training step goes, part by part, and how far each part is from what this machine can do.

    python -m experiments.benchmarks.step_parts --ablation oracle --output step_parts.json

Trains one run of a study's recipe by Lightning, with real batches, losses, clipping and optimizer. Every other step is
observed: the time of each operation of torch is taken, with the operations that torch's counter knows (matrix products,
convolutions, attention; a multiply-add is two) and the bytes of its inputs and outputs. Rows are medians of the
observed steps.

    roof        what this machine reaches in the same run: a product of two square matrices in float32, and a copy
    ms          milliseconds of the operations; what Python does between them is in no row
    of_roof     the time that the operations or the bytes would take at the roof, whichever is longer, over the measured
    step        median of the steps that are not observed: forward, backward, clipping and optimizer, without reading
                the batch. `of_roof` is the floating-point operations of a step at the matrix roof over this time.

Backward counts for the part whose forward made it. Extractors are outside of the module: "extraction and the rest" has
them. Small operations stay in the cache, so that of_roof can exceed 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ablations.plan import build, default_components, plan_runs, read_recipe
from ablations.studies import get_study
from experiments.benchmarks.record import publish
from megasr.console import quiet_lightning
from megasr.errors import unknown_name
from megasr.networks.parameters import part_of

_WARMUP_STEPS = 2
_OUTSIDE, _OPTIMIZER = "extraction and the rest", "clipping and optimizer"
# What names of operations hold, by kind; the first match counts.
_KINDS = {
    "attention": ("scaled_dot_product", "multi_head_attention", "_softmax"),
    "convolution": ("convolution",),
    "matrix product": ("mm", "linear"),
    "normalisation": ("group_norm", "layer_norm", "batch_norm"),
    "resizing": ("upsample", "pool", "grid_sampler"),
    "optimizer": ("adamw", "_foreach"),
}


def place_of(name: str) -> str:
    """The row that a module of MegaSRModule belongs to, by its name."""
    if name.startswith("restoration_loss"):
        return "losses and discriminator"
    if name.startswith("prior.vae"):
        return "vae"
    if name.startswith("prior.text_encoder"):
        return "text_encoder"
    part = part_of(name + ".")
    return "unet" if part == "controlnet" and "controlnet" not in name else part


def kind_of(operation: str) -> str:
    """The row of an operation such as aten.addmm."""
    return next((kind for kind, words in _KINDS.items() if any(word in operation for word in words)), "elementwise")


class Observer(TorchDispatchMode):
    """Times every operation inside `with`.

    Args:
        module: whose parts are told apart.

    Attributes:
        rows: of (part, kind), the sums of seconds, operations and bytes.
        place: part of what is outside of all modules.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.places = {id(part): place_of(name) for name, part in module.named_modules() if name}
        self.place = _OUTSIDE
        self.rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._inside: list[str] = []
        self._made: dict[int, str] = {}  # number of a node of autograd -> part whose forward made it

    def __enter__(self) -> Any:
        self._hooks = [
            register_module_forward_pre_hook(lambda part, _: self._inside.append(self.places.get(id(part), self._now))),
            register_module_forward_hook(lambda *_: self._inside.pop() and None, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    @property
    def _now(self) -> str:
        return self._inside[-1] if self._inside else self.place

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        node, kwargs = torch._C._current_autograd_node(), kwargs or {}
        begin = time.perf_counter()
        made = operation(*args, **kwargs)
        seconds = time.perf_counter() - begin
        if node is None:
            part = self._now
            if torch.is_grad_enabled():
                # The last node's number: of this operation if it made one, else it is there already.
                self._made.setdefault(torch._C._autograd._get_sequence_nr() - 1, part)
        else:
            part = self._made.get(node._sequence_nr(), self.place)
        packet = operation._overloadpacket
        row = self.rows[part, kind_of(str(packet))]
        row["seconds"] += seconds  # type: ignore[assignment]
        if packet in flop_registry:
            row["operations"] += flop_registry[packet](*args, **kwargs, out_val=made)
        if not operation.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, torch.Tensor)]
            row["bytes"] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return made


class EveryOther(lightning.Callback):
    """Observes every other step after the first ones, and times the rest."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.observed: list[dict[tuple[str, str], Counter[str]]] = []
        self._observer: Observer | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= _WARMUP_STEPS and batch_idx % 2:
            self._observer = Observer(pl_module)
            self._observer.__enter__()
        self._begin = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self._observer is not None:
            self._observer.place = _OPTIMIZER

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seconds = time.perf_counter() - self._begin
        if self._observer is not None:
            self._observer.__exit__(None, None, None)
            self.observed.append(self._observer.rows)
            self._observer = None
        elif batch_idx >= _WARMUP_STEPS:
            self.seconds.append(seconds)


def best_seconds(call: Callable[[], Any], calls: int = 20) -> float:
    """The shortest of the calls."""
    taken = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def roof() -> dict[str, float]:
    """Operations and bytes per second."""
    side, matrix = 1024, torch.rand(1024, 1024)
    block = torch.rand(2**24)
    target = torch.empty_like(block)
    return {
        "operations": 2 * side**3 / best_seconds(lambda: matrix @ matrix),
        "bytes": 2 * block.nbytes / best_seconds(lambda: target.copy_(block)),
    }


def table(
    observed: list[dict[tuple[str, str], Counter[str]]], by: int, reached: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Medians over the steps of the parts (by=0) or of the kinds (by=1), the longest first."""
    steps: list[dict[str, Counter[str]]] = []
    for rows in observed:
        steps.append(defaultdict(Counter))
        for key, row in rows.items():
            steps[-1][key[by]].update(row)
    whole = statistics.median(sum(row["seconds"] for row in step.values()) for step in steps)
    found = {}
    for name in {name for step in steps for name in step}:
        seconds, operations, moved = (
            statistics.median(step[name][unit] for step in steps) for unit in ("seconds", "operations", "bytes")
        )
        found[name] = {
            "ms": round(seconds * 1e3, 1),
            "share": round(seconds / whole, 3),
            "gflop": round(operations / 1e9, 2),
            "gbyte": round(moved / 1e9, 3),
            "of_roof": round(max(operations / reached["operations"], moved / reached["bytes"]) / seconds, 2),
        }
    return dict(sorted(found.items(), key=lambda row: -row[1]["ms"]))


def measure(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train a resolved config for so many counted steps, half of them observed."""
    components, watch = default_components(), EveryOther()
    quiet_lightning()
    lightning.seed_everything(0, verbose=False)
    built = build(components, config)
    settings = {**built.trainer, "max_steps": steps + _WARMUP_STEPS, "limit_val_batches": 0, "callbacks": [watch]}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    before = roof()
    components.trainer(**{**settings, **quiet}).fit(built.model, datamodule=built.data)
    reached = {name: max(value, before[name]) for name, value in roof().items()}
    step = statistics.median(watch.seconds)
    operations = statistics.median(sum(row["operations"] for row in rows.values()) for rows in watch.observed)
    return {
        "roof": {
            "matmul_fp32_gflops": round(reached["operations"] / 1e9, 1),
            "copy_gb_per_s": round(reached["bytes"] / 1e9, 1),
        },
        "step": {
            "ms": round(step * 1e3, 1),
            "ms_of_all_steps": [round(seconds * 1e3, 1) for seconds in watch.seconds],
            "gflop": round(operations / 1e9, 2),
            "of_roof": round(operations / reached["operations"] / step, 2),
        },
        "parts": table(watch.observed, 0, reached),
        "kinds": table(watch.observed, 1, reached),
    }


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("experiments/tiny/prior_selection_quick.yaml"))
    parser.add_argument("--ablation", default="oracle", help="of the recipe's study")
    parser.add_argument("--steps", type=int, default=20, help="half of them are observed")
    parser.add_argument("--threads", type=int, default=1, help="a study trains on one core per training")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    components = default_components()
    recipe = read_recipe(arguments.config, components)
    study = recipe.declared or get_study(recipe.study)
    plans = {plan.ablation: plan for plan in plan_runs(study, recipe, components) if plan.seed is not None}
    if arguments.ablation not in plans:
        parser.error(unknown_name("ablation", arguments.ablation, plans))
    results = measure(plans[arguments.ablation].config, arguments.steps)
    settings = {name: str(value) if name == "config" else value for name, value in vars(arguments).items()}
    publish("step_parts", {n: v for n, v in settings.items() if n != "output"}, results, arguments.output)


if __name__ == "__main__":
    main()
