"""Measurements inside a training step: gradient norms, strengths of the branches, and the global batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import lightning
import torch
from torch import nn

from megasr.batch import SRBatch
from megasr.networks.msfm import MSFM, Modulation
from megasr.networks.network import MegaSRNetwork
from megasr.networks.parameters import PARTS, part_of
from megasr.networks.sites import Site, iterate_transformers
from megasr.training.sharding import gathered, total_norm

REGION = "region"


def trained_parts(network: MegaSRNetwork) -> dict[str, list[nn.Parameter]]:
    """The trained parameters of every part of the adapter that there is (see `megasr params`)."""
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in PARTS}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parts[part_of(name)].append(parameter)
    return {part: parameters for part, parameters in parts.items() if parameters}


@torch.no_grad()
def gradient_norms(parts: dict[str, list[nn.Parameter]]) -> dict[str, float]:
    """L2 norm of the gradient of every part, and of all of them (total)."""
    norms = {part: total_norm([p.grad for p in parameters if p.grad is not None]) for part, parameters in parts.items()}
    total = torch.stack([norm.float() for norm in norms.values()]).norm()
    return {f"grad_norm/{part}": float(norm) for part, norm in {**norms, "total": total}.items()}


def iterate_sites(network: MegaSRNetwork) -> Iterator[tuple[str, nn.Module, Site]]:
    """(name, block, site) in the order of the forward pass; names such as unet.down0.1, controlnet.mid.0."""
    for adapted in reversed(network.models):
        names = {id(module): name for name, module in adapted.model.named_modules()}
        for (block, _), site in zip(iterate_transformers(adapted.model), adapted.sites, strict=True):
            place = names[id(block)].replace("_block.", ".").replace("_blocks.", "").replace("attentions.", "")
            yield f"{adapted.name}.{place}", block, site


class SiteProbes:
    """Measure how strong every branch is at every site: ||added|| / ||features||, in the forward passes inside `with`.

    Args:
        network: the adapted prior.

    Attributes:
        keys: gate/<site> and modulation/<site>/<branch>, in the order of the forward pass.
    """

    def __init__(self, network: MegaSRNetwork) -> None:
        self._network = network
        self._branches = network.groups.names + ([REGION] if network.groups.aggregated else [])
        self.keys = [key for name, _, site in iterate_sites(network) for key in self._keys(name, site)]
        self._totals: dict[str, tuple[torch.Tensor, int]] = {}
        self._batch: dict[str, list[torch.Tensor]] = {}
        self._handles: list[Any] = []

    def _keys(self, name: str, site: Site) -> list[str]:
        gate = [f"gate/{name}"] if site.csm is not None else []
        return gate + ([f"modulation/{name}/{branch}" for branch in self._branches] if site.msfm is not None else [])

    @property
    def watching(self) -> bool:
        """Whether the hooks are in the network."""
        return bool(self._handles)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Measure from now on, from zero."""
        self._totals, self._batch = {}, {}
        for name, block, site in iterate_sites(self._network):
            if site.csm is not None:
                self._watch_gate(f"gate/{name}", site.after_attention(block), site.csm)
            if site.msfm is not None:
                self._watch_modulation([f"modulation/{name}/{branch}" for branch in self._branches], site.msfm)

    def stop(self) -> None:
        """Remove all hooks; the totals stay."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._batch = [], {}

    def take(self, guided: torch.Tensor | None = None) -> None:
        """Add what has been measured since the last call to the totals.

        Args:
            guided: (B,) bool, samples whose maps were not dropped; None for all.
        """
        for key, values in self._batch.items():
            strengths = torch.stack(values)
            if guided is not None and key.startswith("modulation/"):
                strengths = strengths[:, guided.to(strengths.device)]
            total, count = self._totals.get(key, (torch.zeros((), device=strengths.device), 0))
            self._totals[key] = total + strengths.sum(), count + strengths.numel()
        self._batch = {}

    def totals(self, device: torch.device) -> torch.Tensor:
        """(2, keys) float32: sums of the strengths, and numbers of samples and passes."""
        result = torch.zeros(2, len(self.keys), device=device)
        for i, key in enumerate(self.keys):
            if key in self._totals:
                result[0, i], result[1, i] = self._totals[key]
        return result

    def means(self, totals: torch.Tensor) -> dict[str, float]:
        """Mean strength of every branch that was measured, from `totals` (summed over processes)."""
        columns = zip(self.keys, *totals.tolist(), strict=True)
        return {key: total / count for key, total, count in columns if count > 0}

    def _record(self, key: str, added: torch.Tensor, features: torch.Tensor) -> None:
        part, whole = (x.detach().float().flatten(1).norm(dim=1) for x in (added, features))
        self._batch.setdefault(key, []).append(part / whole.clamp_min(torch.finfo(torch.float32).tiny))

    def _watch_gate(self, key: str, after_attention: nn.Module, csm: nn.Module) -> None:
        added: list[torch.Tensor] = []

        def after_gate(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            added[:] = [output.detach()]

        def before_norm(module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
            self._record(key, added.pop(), inputs[0])

        self._handles += [csm.register_forward_hook(after_gate), after_attention.register_forward_pre_hook(before_norm)]

    def _watch_modulation(self, keys: list[str], msfm: MSFM) -> None:
        # The maps come with the conditions, the features in every pass. Scale and shift of single branches are computed
        # again there, one site at a time: kept for all sites they would take more memory than the features.
        maps: dict[int, torch.Tensor] = {}

        def after_saft(module: nn.Module, inputs: Sequence[torch.Tensor], output: Any) -> None:
            maps[id(module)] = inputs[0].detach()

        @torch.no_grad()
        def after_fusion(module: nn.Module, inputs: Sequence[Any], output: torch.Tensor) -> None:
            normalised = msfm.norm(inputs[0])
            with gathered(msfm.safts[0]):  # FSDP2 gathers all of a network's SAFTs together
                for key, saft in zip(keys, msfm.safts, strict=True):
                    (gamma, beta), (gamma_0, beta_0) = saft.forward(maps[id(saft)]), _empty_modulation(msfm, saft)
                    scale, shift = msfm.arrange(gamma - gamma_0), msfm.arrange(beta - beta_0)
                    self._record(key, normalised * scale + shift, output)

        self._handles += [saft.register_forward_hook(after_saft) for saft in msfm.safts]
        self._handles.append(msfm.register_forward_hook(after_fusion))


def _empty_modulation(msfm: MSFM, saft: nn.Module) -> Modulation:
    """Scale and shift of an empty map, (1, C, 1, 1), as they are the same everywhere."""
    weight = next(saft.parameters())
    if msfm.aggregation is not None and saft is msfm.safts[-1]:
        regions = next(msfm.aggregation.parameters()).shape[1]
        empty = msfm.aggregation.forward(weight.new_zeros(1, regions, 2, 2))  # GroupNorm refuses a single value
    else:
        empty = weight.new_zeros(1, weight.shape[1], 1, 1)
    gamma, beta = saft.forward(empty)
    return gamma[..., :1, :1], beta[..., :1, :1]


def global_batch(trainer: lightning.Trainer, data: lightning.LightningDataModule | None) -> int | None:
    """Images per optimizer step over all processes; None when the data module has no batch_size."""
    micro_batch: int | None = getattr(data, "batch_size", None)
    return None if micro_batch is None else micro_batch * trainer.world_size * trainer.accumulate_grad_batches


def describe_batch(trainer: lightning.Trainer, batch: SRBatch) -> str:
    """One line: how many images make an optimizer step, how long an epoch is, and which degradation makes lq."""
    accumulated, batches, images = trainer.accumulate_grad_batches, trainer.num_training_batches, len(batch["keys"])
    epoch = f"; an epoch is {batches / accumulated:,.0f} steps" if batches != float("inf") else ""
    presets = sorted({str(params["name"]) for params in batch.get("degradation") or ()})
    lq = f"; lq by {', '.join(presets)}" if presets else ""
    parts = f"{images} images x {trainer.world_size} device(s) x {accumulated} accumulated"
    return f"global batch {images * trainer.world_size * accumulated} = {parts}{epoch}{lq}"
