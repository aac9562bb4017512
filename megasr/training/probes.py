"""Measurements inside a training step: strengths of the branches, throughput."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import lightning
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.utils.flop_counter import FlopCounterMode

from megasr.networks.csm import KeyValue
from megasr.networks.msfm import MSFM, Modulation
from megasr.networks.network import Conditions, MegaSRNetwork
from megasr.networks.sites import Semantics, Site, iterate_transformers
from megasr.training.sharding import gathered, total_norm

PARTS = ("lq_encoder", "controlnet", "csm", "rca", "msfm")
REGION = "region"


def trained_parts(network: MegaSRNetwork) -> dict[str, list[nn.Parameter]]:
    """The trained parameters of every part of the adapter that there is (see `megasr params`)."""
    parts: dict[str, list[nn.Parameter]] = {part: [] for part in PARTS}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            shared = "csm" if name.startswith("connector.") else "controlnet"
            module = next((part for part in ("csm", "rca", "msfm") if f".{part}." in name), shared)
            parts["lq_encoder" if "controlnet_cond_embedding" in name else module].append(parameter)
    return {part: parameters for part, parameters in parts.items() if parameters}


@torch.no_grad()
def gradient_norms(parts: dict[str, list[nn.Parameter]]) -> dict[str, float]:
    """L2 norm of the gradient of every part, and of all of them (total)."""
    norms = {part: total_norm([p.grad for p in parameters if p.grad is not None]) for part, parameters in parts.items()}
    total = torch.stack([norm.float() for norm in norms.values()]).norm()
    return {f"grad_norm/{part}": float(norm) for part, norm in {**norms, "total": total}.items()}


def iterate_sites(network: MegaSRNetwork) -> Iterator[tuple[str, nn.Module, Site]]:
    """(name, transformer, site) in the order of the forward pass; names such as unet.down0.1, controlnet.mid.0."""
    models = [("controlnet", network.controlnet.controlnet, network.controlnet.sites)] if network.controlnet else []
    models.append(("unet", network.unet.unet, network.unet.sites))
    for model_name, model, sites in models:
        names = {id(module): name for name, module in model.named_modules()}
        for (transformer, _), site in zip(iterate_transformers(model), sites, strict=True):
            place = names[id(transformer)].replace("_block.", ".").replace("_blocks.", "").replace("attentions.", "")
            yield f"{model_name}.{place}", transformer, site


class SiteProbes:
    """Measures the strength of every branch at every site in the forward passes inside `with`; costs nothing outside.

    Args:
        network: the adapted prior.

    Attributes:
        keys: names of what is measured, gate/<site> and modulation/<site>/<branch>, in the order of the forward pass.
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
        """Whether it measures now."""
        return bool(self._handles)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Measure from now on; earlier totals are forgotten."""
        self._totals, self._batch = {}, {}
        for name, transformer, site in iterate_sites(self._network):
            if site.csm is not None:
                self._watch_gate(f"gate/{name}", transformer.transformer_blocks[0], site.csm)
            if site.msfm is not None:
                self._watch_modulation([f"modulation/{name}/{branch}" for branch in self._branches], site.msfm)

    def stop(self) -> None:
        """Leave no hook in the network. The totals stay."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._batch = [], {}

    def take(self, guided: torch.Tensor | None = None) -> None:
        """Add what has been measured since the last call to the totals.

        Args:
            guided: (B,) bool, samples that were given their maps (not those without, by dropout); None for all.
        """
        for key, values in self._batch.items():
            strengths = torch.stack(values)
            if guided is not None and key.startswith("modulation/"):
                strengths = strengths[:, guided.to(strengths.device)]
            total, count = self._totals.get(key, (torch.zeros((), device=strengths.device), 0))
            self._totals[key] = total + strengths.sum(), count + strengths.numel()
        self._batch = {}

    def totals(self, device: torch.device) -> torch.Tensor:
        """(2, keys) float32: sum of the strengths, and of how many samples and passes."""
        zero = (torch.zeros(()), 0)
        pairs = [self._totals.get(key, zero) for key in self.keys]
        sums = torch.stack([total.to(device) for total, _ in pairs]) if pairs else torch.zeros(0, device=device)
        return torch.stack([sums, torch.tensor([float(count) for _, count in pairs], device=device)])

    def means(self, totals: torch.Tensor) -> dict[str, float]:
        """Mean strength of every branch that was measured, from `totals` (summed over processes)."""
        sums, counts = totals.tolist()
        found = zip(self.keys, sums, counts, strict=True)
        return {key: total / count for key, total, count in found if count > 0}

    def _record(self, key: str, added: torch.Tensor, features: torch.Tensor) -> None:
        part, whole = (x.detach().float().flatten(1).norm(dim=1) for x in (added, features))
        self._batch.setdefault(key, []).append(part / whole.clamp_min(torch.finfo(torch.float32).tiny))

    def _watch_gate(self, key: str, block: nn.Module, csm: nn.Module) -> None:
        added: list[torch.Tensor] = []

        def after_gate(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            added[:] = [output.detach()]

        def before_norm3(module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
            self._record(key, added.pop(), inputs[0])

        self._handles += [csm.register_forward_hook(after_gate), block.norm3.register_forward_pre_hook(before_norm3)]

    def _watch_modulation(self, keys: list[str], msfm: MSFM) -> None:
        # The maps are seen when the conditions are made, the features in every pass. Scale and shift of single branches
        # are made again there, one site at a time: kept for all sites they would take more memory than the features.
        maps: dict[int, torch.Tensor] = {}

        def after_saft(module: nn.Module, inputs: Sequence[torch.Tensor], output: Any) -> None:
            maps[id(module)] = inputs[0].detach()

        @torch.no_grad()
        def after_fusion(module: nn.Module, inputs: Sequence[Any], output: torch.Tensor) -> None:
            normalised = msfm.norm(inputs[0])
            with gathered(msfm.safts[0]):  # where weights are spread, all of a network's SAFTs are gathered together
                for key, saft in zip(keys, msfm.safts, strict=True):
                    (gamma, beta), (gamma_0, beta_0) = saft.forward(maps[id(saft)]), _answer_to_nothing(msfm, saft)
                    self._record(key, normalised * (gamma - gamma_0) + (beta - beta_0), output)

        self._handles += [saft.register_forward_hook(after_saft) for saft in msfm.safts]
        self._handles.append(msfm.register_forward_hook(after_fusion))


def _answer_to_nothing(msfm: MSFM, saft: nn.Module) -> Modulation:
    """Scale and shift for an empty map, (1, C, 1, 1): the same everywhere."""
    weight = next(saft.parameters())
    if msfm.aggregation is not None and saft is msfm.safts[-1]:
        regions = next(msfm.aggregation.parameters()).shape[1]
        nothing = msfm.aggregation.forward(weight.new_zeros(1, regions, 2, 2))  # GroupNorm refuses a single value
    else:
        nothing = weight.new_zeros(1, weight.shape[1], 1, 1)
    gamma, beta = saft.forward(nothing)
    return gamma[..., :1, :1], beta[..., :1, :1]


def global_batch(trainer: lightning.Trainer, data: lightning.LightningDataModule | None) -> int | None:
    """Images per optimizer step in all processes; None when the data do not say how large their batches are."""
    micro_batch: int | None = getattr(data, "batch_size", None)
    return None if micro_batch is None else micro_batch * trainer.world_size * trainer.accumulate_grad_batches


def describe_batch(trainer: lightning.Trainer, micro_batch: int) -> str:
    """One line: how many images make an optimizer step, and how long an epoch is.

    Args:
        trainer: that of the training.
        micro_batch: images per device and forward pass.
    """
    accumulated = trainer.accumulate_grad_batches
    in_all = micro_batch * trainer.world_size * accumulated
    steps = trainer.num_training_batches
    epoch = f"; an epoch is {steps / accumulated:,.0f} steps" if steps != float("inf") else ""
    parts = f"{micro_batch} images x {trainer.world_size} device(s) x {accumulated} accumulated"
    return f"global batch {in_all} = {parts}{epoch}"


class OperationCount:
    """Floating-point operations of a forward and a backward pass of the adapted U-Net and the ControlNet.

    Matrix products, convolutions and attention are counted, as is usual for MFU (2204.02311, appendix B), on tensors
    without numbers (FakeTensorMode): counting operations as they run would change the order of their sums. Extractors,
    VAE and text encoder are left out. Weights that are spread over processes are not counted.
    """

    def __init__(self) -> None:
        self.per_image: float | None = None

    def watch(self, network: MegaSRNetwork) -> None:
        """Count when the network has been called for the first time from now on."""
        if isinstance(network, FSDPModule):
            return

        def seen(module: MegaSRNetwork, inputs: Any, output: torch.Tensor) -> None:
            handle.remove()
            self.count(module, inputs)

        handle = network.register_forward_hook(seen)

    def count(self, network: MegaSRNetwork, inputs: tuple[torch.Tensor, torch.Tensor, Conditions]) -> None:
        """Count a pass with inputs of these shapes: what `MegaSRNetwork.forward` was called with."""
        z_t, _, conditions = inputs
        site, config = conditions.unet[0], network.config
        images, height, width = len(z_t), *(n * network.downsampling for n in z_t.shape[-2:])
        trained = [p for p in network.parameters() if p.requires_grad]
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:

            def blank(*shape: int) -> torch.Tensor:
                return torch.zeros(*shape, device=z_t.device)

            def tokens(keys_values: KeyValue | None, width: int) -> torch.Tensor | None:
                return None if keys_values is None else blank(images, keys_values[0].shape[2], width)

            semantics = Semantics(
                blank(images, site.text[0].shape[2], network.unet.unet.config.cross_attention_dim),
                tokens(site.image, config.image_width),
                tokens(site.representation, config.representation_width),
            )
            maps = {g.name: blank(images, g.channels, height, width) for g in network.guidance}
            made = network.conditions(blank(images, 3, height, width), semantics, maps)
            predicted = network(blank(*z_t.shape), blank(images).long(), made)
            torch.autograd.grad(predicted.square().mean(), trained, allow_unused=True)
        self.per_image = counter.get_total_flops() / images

    def rates(self, images_per_s: float, devices: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
        """train/tflops_per_device per second, and train/mfu in [0, 1] where the peak of the device is known."""
        if not self.per_image:
            return {}
        per_device = self.per_image * images_per_s / devices
        rates = {"train/tflops_per_device": per_device / 1e12}
        peak = get_available_flops(device, dtype) if device.type == "cuda" else None
        return rates | ({"train/mfu": per_device / peak} if peak else {})
