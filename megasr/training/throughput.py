"""What a step costs: the batch as it is put together, operations, and the share of the hardware's peak (MFU)."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.utils.flop_counter import FlopCounterMode

from megasr.networks.csm import KeyValue
from megasr.networks.network import Conditions, MegaSRNetwork
from megasr.networks.sites import Semantics


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
