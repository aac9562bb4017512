"""Contract 3: every field of every config changes something that can be observed."""

import dataclasses
import functools
from unittest import mock

import pytest
import torch

from megasr.networks.config import AdapterConfig
from megasr.system import FrozenParts
from megasr.training.config import SAMPLED, CriticConfig, ObjectiveConfig, OptimizerConfig, SamplerConfig
from tests.helpers.losses import load_random
from tests.helpers.training import LossCurve, fit, make_batch, make_module

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
        "map_patch": 2,
        "prior_lora": 2,
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
        "color_fix": "adain",
    },
}
# test_precision.py, test_registries.py and test_lq_stream.py
ELSEWHERE = {"state_bits", "msfm", "csm", "lq_encoder", "lq_stream"}
# These have an effect on objectives that train the sampler alone, and the sampler has one on them.
CRITIC = CriticConfig(lora_rank=2, learning_rate=1e-2)
ONE_STEP = {
    "adapter": AdapterConfig(),
    "objective": ObjectiveConfig(
        kind="few_step", terms={"l1": 1.0, "l2": 1.0, "vsd": 0.5, "gan": 0.5}, term_starts={"l2": 1}, critic=CRITIC
    ),
    "sampler": SamplerConfig(num_steps=2, start="lq", start_fraction=0.5),
}
ONE_STEP_FLIPS = {
    "adapter": {"encoder_lora": 2},
    "objective": {
        "kind": None,
        "terms": {"l1": 2.0, "l2": 1.0, "vsd": 0.5, "gan": 0.5},
        "term_starts": {"l2": 2},
        "critic": CriticConfig(),
        "weights_dir": "elsewhere",
    },
    "critic": {
        "guidance_scale": 1.0,
        "timesteps": (0.02, 0.3),
        "lora_rank": 3,
        "features": "tiny",
        "learning_rate": 1e-3,
    },
    "sampler": {"num_steps": 3, "start": "noiseless_lq", "start_fraction": 0.25},
}
ONE_STEP_CASES = [(section, field) for section, flips in ONE_STEP_FLIPS.items() for field in flips]
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


def names(config):
    return {field.name for field in dataclasses.fields(config)} - ELSEWHERE


def test_every_field_is_in_the_table():
    assert set(ONE_STEP_FLIPS["critic"]) == names(CRITIC)
    assert set(ONE_STEP_FLIPS["sampler"]) == set(SAMPLED)
    for section, config in BASES.items():
        more = ONE_STEP_FLIPS.get(section, {}) if section != "sampler" else {}
        assert set(FLIPS[section]) | set(more) == names(config)


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


def observe_one_step(adapter, sampler, objective):
    """Sizes, losses of three steps, the networks that were asked for, and sr, all with the sampler that is trained."""
    asked = []

    def perceptual(self, name, weights_dir):
        asked.append((name, weights_dir))
        return load_random(self, name, weights_dir)

    with mock.patch.object(FrozenParts, "perceptual", perceptual):
        module = make_module(adapter=adapter, objective=objective, sampler=sampler)
    curve, batch = LossCurve(), make_batch()
    fit(module, batch, 3, callbacks=[curve])
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
    return shapes, curve.losses, asked, module.eval().restore(batch).sum().item()


@pytest.fixture(scope="module")
def one_step_base():
    return observe_one_step(**ONE_STEP)


@pytest.mark.parametrize(("section", "field"), ONE_STEP_CASES, ids=[f"{s}.{f}" for s, f in ONE_STEP_CASES])
def test_every_field_of_one_step_training_has_an_effect(one_step_base, section, field):
    changes = {field: ONE_STEP_FLIPS[section][field]}
    if section == "critic":
        section, changes = "objective", {"critic": dataclasses.replace(CRITIC, **changes)}
    if changes == {"kind": None}:
        changes |= {"terms": None, "term_starts": None, "critic": None}  # which are refused then
    changed = {**ONE_STEP, section: dataclasses.replace(ONE_STEP[section], **changes)}
    assert observe_one_step(**changed) != one_step_base


def test_the_comparison_of_one_step_training_can_be_equal(one_step_base):
    assert observe_one_step(**ONE_STEP) == one_step_base


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
