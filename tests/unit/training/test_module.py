"""The LightningModule: what it trains, on what, and what it samples."""

import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.networks.config import AdapterConfig
from megasr.training.config import ObjectiveConfig, SamplerConfig
from megasr.training.sharding import clip_gradients
from tests.helpers.training import fit, make_batch, make_module, take


def step_loss(module, batch):
    module.log = lambda *a, **k: None
    return module.training_step(batch, 0)["loss"]


def test_the_optimizer_holds_exactly_the_trained_parameters():
    module = make_module(adapter=AdapterConfig(guidance=("canny",), image=True))
    held = {id(p) for g in module.configure_optimizers()["optimizer"].param_groups for p in g["params"]}
    assert held == {id(p) for p in module.parameters() if p.requires_grad}
    assert not held & {id(p) for p in module.prior.parameters()}


def test_the_frozen_networks_stay_in_evaluation_mode():
    module = make_module().train()
    assert not any(m.training for m in module.prior.modules())
    assert module.network.controlnet.training


def test_a_samples_loss_does_not_depend_on_its_neighbours():
    module, batch = make_module(), make_batch(3)
    parts = [step_loss(module, take(batch, [i])) for i in range(3)]
    torch.testing.assert_close(step_loss(module, batch), torch.stack(parts).mean())


def test_latents_that_a_batch_brings_are_not_made_again():
    module, batch = make_module(), make_batch()
    latents = module.prior.encode(batch["hq"])
    assert torch.equal(step_loss(module, {**batch, "latents": latents}), step_loss(module, batch))
    assert not torch.equal(step_loss(module, {**batch, "latents": 0.9 * latents}), step_loss(module, batch))


def test_text_dropout_is_the_empty_prompt():
    dropped = make_module(objective=ObjectiveConfig(text_dropout=1.0, guidance_dropout=0.0))
    kept = make_module(objective=ObjectiveConfig(text_dropout=0.0, guidance_dropout=0.0))
    batch = make_batch()
    silent = {**batch, "tags": ["", ""]}
    assert torch.equal(step_loss(dropped, batch), step_loss(kept, silent))
    assert not torch.equal(step_loss(kept, batch), step_loss(kept, silent))


def test_guidance_dropout_is_a_map_of_zeros():
    adapter = AdapterConfig(guidance=("canny",), fusion_init="as_drawn", saft_width=8)
    dropped = make_module(adapter=adapter, objective=ObjectiveConfig(text_dropout=0.0, guidance_dropout=1.0))
    kept = make_module(adapter=adapter, objective=ObjectiveConfig(text_dropout=0.0, guidance_dropout=0.0))
    batch = make_batch()
    empty = {**batch, "maps": {"canny": torch.zeros(2, 1, 32, 32)}}
    assert torch.equal(step_loss(dropped, batch), step_loss(kept, empty))
    assert not torch.equal(step_loss(kept, batch), step_loss(kept, empty))


def test_validation_loss_is_the_same_every_time_and_uses_all_strata():
    module = make_module(objective=ObjectiveConfig(validation_timesteps=3))
    logged = []
    module.log = lambda name, value, **k: logged.append((name, float(value)))
    module.validation_step(make_batch(), 0)
    module.train()
    module.validation_step(make_batch(), 0)
    assert logged[0] == logged[1] and logged[0][0] == "val/loss"


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_only_a_part_of_the_schedule_is_trained_on(fraction):
    objective, sampler = ObjectiveConfig(timestep_fraction=fraction), SamplerConfig(start_fraction=fraction)
    module = make_module(objective=objective, sampler=sampler)
    module.log = lambda *a, **k: None
    batch = make_batch(8)
    timesteps = torch.cat([module.training_step({**batch, "keys": [f"{n}/{i}" for i in range(8)]}, 0)["timesteps"]
                           for n in range(4)])  # fmt: skip
    assert timesteps.max() < fraction * 1000
    assert timesteps.max() > 0.7 * fraction * 1000


def test_a_timestep_fraction_out_of_range_is_refused():
    with pytest.raises(UsageError, match=r"objective.timestep_fraction must be in \(0, 1\], got 0"):
        ObjectiveConfig(timestep_fraction=0)


def test_a_sampler_that_starts_where_nothing_is_trained_is_refused():
    with pytest.raises(UsageError, match="start_fraction 0.6 begins where nothing is trained.* is 0.5"):
        make_module(objective=ObjectiveConfig(timestep_fraction=0.5), sampler=SamplerConfig(start_fraction=0.6))


def test_a_nan_stops_before_the_weights_move_and_names_the_image(tmp_path):
    module, batch = make_module(), make_batch()
    batch["hq"][1] = float("nan")
    before = {name: p.clone() for name, p in module.named_parameters()}
    with pytest.raises(MegaSRError, match="step 0 for image-1;"):
        fit(module, batch, 1, default_root_dir=tmp_path)
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())


def test_sr_of_an_image_does_not_depend_on_the_batch():
    module, batch = make_module().eval(), make_batch(3)
    together = module.restore(batch)
    alone = torch.cat([module.restore(take(batch, [i])) for i in (2, 0)])
    torch.testing.assert_close(together[[2, 0]], alone, atol=2e-5, rtol=0)
    assert together.shape == batch["hq"].shape and together.min() >= 0 and together.max() <= 1


def test_noise_is_keyed_by_the_name_and_the_seed():
    batch = make_batch(1)
    sr = make_module().eval().restore(batch)
    assert torch.equal(sr, make_module().eval().restore(batch))
    assert not torch.equal(sr, make_module().eval().restore({**batch, "keys": ["another"]}))
    assert not torch.equal(sr, make_module(seed=1).eval().restore(batch))


def test_sizes_that_do_not_fit_the_prior_are_padded_and_cropped_back():
    module = make_module().eval()
    batch = make_batch(1)
    batch["lq"] = torch.rand(1, 3, 9, 11)
    assert module.restore(batch).shape == (1, 3, 36, 44)


def test_guidance_scale_moves_away_from_the_negative_prompt():
    batch = make_batch(1)

    def restore(**sampler):
        return make_module(sampler=SamplerConfig(num_steps=2, **sampler)).eval().restore(batch)

    plain = restore()
    assert torch.equal(plain, restore(negative_prompt="blur"))  # not used at scale 1
    strong = restore(guidance_scale=4.0, negative_prompt="blur")
    assert not torch.equal(plain, strong)
    assert not torch.equal(strong, restore(guidance_scale=4.0, negative_prompt="noise"))
    same_words = restore(guidance_scale=4.0, negative_prompt=batch["tags"][0])
    torch.testing.assert_close(plain, same_words, atol=1e-4, rtol=0)


def test_a_part_starts_the_same_whatever_else_the_adapter_contains():
    """Paired ablations: with one seed, two adapters differ in what was switched, not in the luck of the rest."""
    small = make_module(adapter=AdapterConfig(guidance=("canny",), saft_width=8))
    large = make_module(adapter=AdapterConfig(guidance=("canny", "noise"), image=True, rca=True, saft_width=8))
    other = make_module(adapter=AdapterConfig(guidance=("canny",), saft_width=8), seed=1)
    state, in_large, in_other = (dict(m.network.named_parameters()) for m in (small, large, other))
    shared = [n for n, p in state.items() if p.requires_grad and "msfm" not in n and p.ndim > 1 and p.abs().max() > 0]
    assert any("controlnet_cond_embedding" in name for name in shared)
    assert all(torch.equal(state[name], in_large[name]) for name in shared)
    assert any(not torch.equal(state[name], in_other[name]) for name in shared)
    first = "unet.sites.0.msfm.safts.0.mlp.0.weight"
    assert torch.equal(state[first], in_large[first])


def test_building_a_module_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_module()
    assert torch.equal(torch.rand(3), expected)


def test_an_adapter_without_parts_is_refused():
    with pytest.raises(UsageError, match="adapter is empty"):
        make_module(adapter=AdapterConfig(controlnet=False))


def test_unknown_guidance_shows_the_nearest_name():
    with pytest.raises(UsageError, match="'cany'; did you mean canny"):
        make_module(adapter=AdapterConfig(guidance=("cany",)))


def test_oracles_need_their_data():
    module = make_module(adapter=AdapterConfig(guidance=("oracle_edge",)))
    with pytest.raises(UsageError, match="oracle_edge.*SceneDataModule"):
        step_loss(module, make_batch())


@pytest.mark.parametrize("by_value", [False, True])
def test_gradients_are_clipped_as_torch_clips_them(by_value):
    mine, theirs = ([torch.nn.Parameter(torch.zeros(n)) for n in (3, 5, 2)] for _ in range(2))
    for parameters in (mine, theirs):
        torch.manual_seed(0)
        for parameter in parameters[:2]:  # the last has no gradient
            parameter.grad = torch.randn(len(parameter))
    clip_gradients(mine, 0.4, by_value)
    (torch.nn.utils.clip_grad_value_ if by_value else torch.nn.utils.clip_grad_norm_)(theirs, 0.4)
    for one, other in zip(mine[:2], theirs, strict=False):
        torch.testing.assert_close(one.grad, other.grad)
    clip_gradients(mine[2:], 0.4, by_value)
    assert mine[2].grad is None
