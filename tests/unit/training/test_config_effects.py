"""Contract 3: every field of every config changes something that can be observed."""

import dataclasses
import functools

import pytest
import torch

from megasr.networks.config import AdapterConfig
from megasr.training.config import ObjectiveConfig, OptimizerConfig, SamplerConfig
from tests.helpers.training import fit, make_batch, make_module

ADAPTER = AdapterConfig(guidance=("canny", "superpixel"), image=True, rca=True, saft_width=8, fusion_init="as_drawn")
SAMPLER = SamplerConfig(num_steps=2, guidance_scale=2.0, start_fraction=0.9)
BASES = {
    "adapter": ADAPTER,
    "objective": ObjectiveConfig(0.5, 0.5),
    "optimizer": OptimizerConfig(1e-3),
    "sampler": SAMPLER,
}
FLIPS = {
    "adapter": {
        "guidance": ("canny",),
        "text": False,
        "image": False,
        "image_width": 640,
        "controlnet": False,
        "gate": "channel",
        "fusion_init": "residual",
        "saft_width": 4,
        "stage1": "v1",
        "rca": False,
        "representation_width": 256,
        "gradient_checkpointing": True,
        "connector": "shared",
        "fusion": "sum",
        "fusion_in": "unet",
    },
    "objective": {
        "text_dropout": 0.0,
        "guidance_dropout": 0.0,
        "type_dropout": 0.5,
        "timestep_fraction": 0.95,
        "validation_timesteps": 2,
    },
    "optimizer": {
        "learning_rate": 1e-4,
        "warmup_steps": 3,
        "decay_share": 1.0,
        "weight_decay": 0.5,
        "beta1": 0.5,
        "beta2": 0.5,
    },
    "sampler": {
        "num_steps": 3,
        "guidance_scale": 3.0,
        "start": "noise",
        "start_fraction": 0.5,
        "positive_prompt": "sharp",
        "negative_prompt": "blur",
        "shown_guidance": ("oracle_canny", "superpixel"),
        "solver": "ddpm",
        "guidance_interval": (0.0, 0.5),
    },
}
ELSEWHERE = {"state_bits", "msfm", "csm", "lq_encoder"}  # test_precision.py and test_registries.py
CASES = [(section, field) for section, flips in FLIPS.items() for field in flips]


def batch_for(adapter):
    batch = make_batch()
    batch["image_tokens"] = batch["image_tokens"][..., : adapter.image_width]
    batch["representation"] = batch["representation"][..., : adapter.representation_width]
    return batch


@functools.cache
def train(**configs):
    """Trained weights, the last loss, and whether blocks are recomputed. No sampler takes part."""
    import megasr.networks.sites as sites

    module, recomputed = make_module(sampler=SAMPLER, **configs), []
    original = sites.checkpoint
    sites.checkpoint = lambda *a, **k: (recomputed.append(1), original(*a, **k))[1]
    try:
        trainer = fit(module, batch_for(configs["adapter"]), 3)
    finally:
        sites.checkpoint = original
    return module.state_dict(), float(trainer.callback_metrics["train/loss"]), bool(recomputed)


def observe(sampler, **configs):
    """Sizes, the last training loss, the validation loss, sr, and whether blocks are recomputed."""
    state, loss, recomputed = train(**configs)
    module, batch = make_module(sampler=sampler, **configs), batch_for(configs["adapter"])
    module.load_state_dict(state)
    logged = []
    module.log = lambda name, value, **k: logged.append(float(value))
    module.eval().validation_step(batch, 0)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
    return shapes, loss, logged, module.restore(batch).sum().item(), recomputed


@pytest.fixture(scope="module")
def base():
    return observe(**BASES)


def test_every_field_is_in_the_table():
    for section, config in BASES.items():
        assert set(FLIPS[section]) == {field.name for field in dataclasses.fields(config)} - ELSEWHERE


@pytest.mark.parametrize(("section", "field"), CASES, ids=[f"{s}.{f}" for s, f in CASES])
def test_every_field_has_an_effect(base, section, field):
    changes = {field: FLIPS[section][field]}
    if changes == {"start": "noise"}:
        changes["start_fraction"] = 1.0  # the only start that noise allows; its own effect is another case
        reference = observe(**{**BASES, "sampler": dataclasses.replace(SAMPLER, start_fraction=1.0)})
    else:
        reference = base
    torch.manual_seed(0)
    assert observe(**{**BASES, section: dataclasses.replace(BASES[section], **changes)}) != reference


def test_the_comparison_itself_can_be_equal(base):
    train.cache_clear()
    assert observe(**BASES) == base


@pytest.mark.parametrize("changes", [{"scale_factor": 2}, {"seed": 1}], ids=["scale_factor", "seed"])
def test_fields_of_the_module_have_an_effect(changes):
    batch = make_batch()
    if "scale_factor" in changes:
        assert make_module(**changes).eval().restore(batch).shape[-1] == 16
    else:
        first, second = (make_module(**c).eval().restore(batch) for c in ({}, changes))
        assert not torch.equal(first, second)
