"""One-step training: who gets which gradient, when terms count, and what is kept of critics."""

from __future__ import annotations

import warnings
from pathlib import Path
from unittest import mock

import lightning
import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.images import upsample_lq
from megasr.losses.restoration import TERMS, RestorationLoss
from megasr.losses.terms import Compared, Estimate
from megasr.networks.config import AdapterConfig
from megasr.system import MegaSR
from megasr.training.callbacks import EMA
from megasr.training.checkpoint import adapter_parameters, critic_parameters, read_checkpoint
from megasr.training.config import CriticConfig, ObjectiveConfig, OptimizerConfig, SamplerConfig
from megasr.training.last_checkpoint import CheckpointFiles
from tests.helpers.losses import ONE_STEP, one_step
from tests.helpers.training import LossCurve, fit, make_batch, make_module

pytestmark = pytest.mark.filterwarnings("ignore")
CRITICS = ("vsd", "gan")


def estimate(module, batch, step=0):
    lq_up = upsample_lq(batch["lq"], 4)
    prompts = module.prompts(batch, lq_up)
    return module._estimate(batch, lq_up, module.conditions(batch, lq_up, prompts), prompts, step)


def gradients(parameters):
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None and p.grad.abs().sum() > 0}


def backward(module, loss):
    module.zero_grad()
    loss.mean().backward()
    return gradients(adapter_parameters(module)), gradients(critic_parameters(module))


@pytest.mark.parametrize("name", list(TERMS))
def test_the_gradient_of_every_term_reaches_adapter_and_lora(name):
    module, batch = one_step({name: 1.0}, lora=2), make_batch()
    adapter, critics = backward(module, module.restoration_loss.terms[name](estimate(module, batch)))
    assert any(part.startswith("network.controlnet") for part in adapter), "the ControlNet learns nothing"
    assert any(".lora_B." in part for part in adapter), "the LoRA learns nothing"
    assert not critics, "the adapter's loss teaches the critic to be fooled"


@pytest.mark.parametrize("name", CRITICS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_critic_learns_after_its_term_and_the_adapter_does_not_from_it(name, precision):
    module, batch = one_step({name: 1.0}), make_batch()
    term = module.restoration_loss.terms[name]
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        seen = estimate(module, batch)
        term(seen)
        loss = term.critic_loss(seen)
    adapter, critics = backward(module, loss)
    assert not adapter
    assert {part for part in critic_parameters(module) if "lora_A" not in part} <= critics.keys()


@pytest.mark.parametrize("name", CRITICS)
def test_one_backward_pass_gives_what_two_would(name):
    module, batch = one_step({"l1": 1.0, name: 0.5}), make_batch()
    loss = module.restoration_loss
    both = backward(module, loss(estimate(module, batch), 0)[0])
    term = loss.terms[name]
    one = estimate(module, batch)
    adapter, _ = backward(module, loss.terms["l1"](one) + 0.5 * term(one))
    _, critics = backward(module, term.critic_loss(estimate(module, batch)))
    for together, alone in zip(both, (adapter, critics), strict=True):
        assert together.keys() == alone.keys() and together
        for part in together:
            torch.testing.assert_close(together[part], alone[part])


def test_an_estimate_outside_of_the_range_still_has_a_gradient():
    module, batch = one_step({"l1": 1.0}), make_batch()
    z0 = (20 * torch.randn_like(module.latents(batch))).requires_grad_()
    seen = Estimate(module.prior, batch, z0, module.latents, ["", ""], 0, 0)
    outside = (seen.sr < 0) | (seen.sr > 1)
    assert outside.any()
    (gradient,) = torch.autograd.grad(seen.sr, z0, outside.float())
    assert gradient.abs().sum() > 0


def test_what_is_not_asked_for_is_not_decoded_or_encoded():
    module, batch = one_step({"csd": 1.0}), make_batch()
    seen = estimate(module, batch)
    with (
        mock.patch.object(type(module.prior), "decode_unclipped", side_effect=AssertionError),
        mock.patch.object(type(module.prior), "encode", side_effect=AssertionError),
    ):
        module.restoration_loss(seen, 0)


@pytest.mark.parametrize("name", ["csd", "vsd"])
def test_noise_and_timesteps_differ_between_images_and_steps(name):
    module, batch = one_step({name: 1.0}), make_batch()
    term = module.restoration_loss.terms[name]
    draws = [term._draw(estimate(module, batch, step), "score")[1].tolist() for step in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][0] != draws[0][1]
    low, high = (fraction * 1000 for fraction in module.objective.critic.timesteps)
    assert all(low <= t < high for drawn in draws for t in drawn)


@pytest.mark.parametrize("name", ["csd", "vsd"])
def test_a_restoration_moves_along_the_difference_of_both_estimates(name):
    """The gradient with respect to z0 is 2 (now - likely) / distance / N (OSEDiff, eq. 7)."""
    module, batch = one_step({name: 1.0}), make_batch()
    term, seen = module.restoration_loss.terms[name], estimate(module, batch)
    if name == "vsd":
        for part, p in critic_parameters(module).items():  # a critic that has learnt something
            torch.nn.init.normal_(p, std=0.1) if ".lora_B." in part else None
    noise, t = term._draw(seen, "score")
    z0, prior = seen.z0.detach(), module.prior
    alphas = prior.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    z_t = alphas.sqrt() * z0 + (1 - alphas).sqrt() * noise

    def clean(v):
        return (
            alphas.sqrt() * z_t - (1 - alphas).sqrt() * v
            if prior.scheduler.config.prediction_type == "v_prediction"
            else (z_t - (1 - alphas).sqrt() * v) / alphas.sqrt()
        )

    with torch.no_grad():
        words, none = (prior.unet(z_t, t, text).sample for text in (seen.text, seen.no_text))
        likely = clean(none + term._scale * (words - none))
        now = clean(none if name == "csd" else term.critic(z_t, t, seen.text).sample)
    expected = 2 * (now - likely) / (z0 - likely).abs().mean((1, 2, 3), keepdim=True) / z0[0].numel() / len(z0)
    (gradient,) = torch.autograd.grad(term(seen).mean(), seen.z0)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_terms_join_at_their_step_and_critics_learn_before():
    module = one_step({"l1": 1.0, "l2": 2.0, "vsd": 1.0}, objective={"term_starts": {"l2": 3, "vsd": 5}})
    batch = make_batch()
    named = [set(module.restoration_loss(estimate(module, batch), step)[1]) for step in (0, 2, 3, 5)]
    assert named == [{"l1", "vsd_critic"}] * 2 + [{"l1", "l2", "vsd_critic"}, {"l1", "l2", "vsd", "vsd_critic"}]
    total, parts = module.restoration_loss(estimate(module, batch), 3)
    torch.testing.assert_close(total, parts["l1"] + 2 * parts["l2"] + parts["vsd_critic"])


@pytest.mark.parametrize(("start", "late"), [(1, False), (2, True)])
def test_a_term_that_joins_after_the_last_step_is_named(start, late):
    module = one_step({"l1": 1.0, "l2": 2.0, "edge": 1.0}, objective={"term_starts": {"l2": start, "edge": 1}})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, make_batch(), 2)
    said = [str(one.message) for one in caught if "term_starts" in str(one.message)]
    assert said == ["objective.term_starts: the training ends at step 2, before l2 joins"] * late


def test_what_is_trained_is_what_is_sampled():
    module, batch = one_step({"l1": 1.0}), make_batch()
    fit(module, batch, 2)
    with torch.no_grad():
        trained = estimate(module.eval(), batch).sr.clamp(0, 1)
    torch.testing.assert_close(module.restore(batch), trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "steps"), [("one_step", 1), ("few_step", 3)])
def test_gradients_pass_through_every_step(kind, steps):
    sampler = SamplerConfig(num_steps=steps, start="lq", start_fraction=0.5)
    module, batch = one_step({"latent": 1.0}, objective={"kind": kind}, sampler=sampler), make_batch()
    seen = []
    module.network.register_forward_hook(lambda m, a, out: seen.append(out) or out.retain_grad())
    estimate(module, batch).z0.square().sum().backward()
    assert len(seen) == steps and all(out.grad.abs().sum() > 0 for out in seen)


def test_a_lora_changes_nothing_at_first_and_leaves_the_prior_alone():
    batch = make_batch()
    plain, tuned = (make_module(adapter=AdapterConfig(prior_lora=rank)).eval() for rank in (None, 2))
    before = {name: p.clone() for name, p in tuned.prior.named_parameters()}
    assert torch.equal(plain.restore(batch), tuned.restore(batch))
    assert tuned.network.unet.unet is not tuned.prior.unet
    fit(tuned.train(), batch, 2)
    trained = adapter_parameters(tuned)
    assert any(".lora_B." in name and p.abs().sum() > 0 for name, p in trained.items())
    assert all(torch.equal(p, before[name]) for name, p in tuned.prior.named_parameters())
    shared = {p.data_ptr() for p in tuned.prior.unet.parameters()}
    held = {p.data_ptr() for p in tuned.network.unet.unet.parameters() if not p.requires_grad}
    assert held == shared, "the prior lies in memory twice"


def test_a_lora_on_the_encoder_reads_lq_and_not_hq():
    adapter, batch = AdapterConfig(encoder_lora=2, controlnet=False, prior_lora=1), make_batch()
    plain = one_step({"latent": 1.0}, adapter=AdapterConfig(controlnet=False, prior_lora=1)).eval()
    module = one_step({"latent": 1.0}, adapter=adapter)
    assert torch.equal(plain.restore(batch), module.eval().restore(batch))
    before = module.latents(batch).clone()
    fit(module.train(), batch, 3)
    learnt = {name for name, p in adapter_parameters(module).items() if ".lora_B." in name and p.abs().sum() > 0}
    assert any(name.startswith("network.vae.encoder.") for name in learnt)
    assert torch.equal(module.latents(batch), before)
    lq_up = upsample_lq(batch["lq"], 4)
    assert not torch.equal(module.network.encode(lq_up), module.prior.encode(lq_up))


def test_the_control_net_starts_from_the_prior_without_lora():
    assert not any("lora" in name for name, _ in one_step({"l1": 1.0}, lora=2).network.controlnet.named_parameters())


def test_a_critic_that_overflows_stops_the_training():
    module, batch = one_step({"l1": 1.0, "gan": 1.0}), make_batch()
    with torch.no_grad():
        next(iter(critic_parameters(module).values())).fill_(float("nan"))
    with pytest.raises(MegaSRError, match="loss is not finite at step 0 for image-0"):
        fit(module, batch, 1)


def test_adapter_and_critics_have_their_own_learning_rate_and_clipping():
    module = one_step({"l1": 1e4, "gan": 1e4}, optimizer=OptimizerConfig(1e-4))
    (optimizer,) = fit(module, make_batch(), 1, gradient_clip_val=1e-3).optimizers
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-3]
    for group in optimizer.param_groups:
        norm = torch.nn.utils.get_total_norm([p.grad for p in group["params"] if p.grad is not None])
        assert float(norm) == pytest.approx(1e-3, rel=1e-2)


def test_a_checkpoint_holds_critics_apart_and_the_system_needs_none(tmp_path: Path):
    module, batch = one_step({"l1": 1.0, "gan": 1.0}, lora=2), make_batch()
    trainer = fit(module, batch, 2, callbacks=[EMA(0.5)], plugins=[CheckpointFiles()], default_root_dir=tmp_path)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    held = read_checkpoint(path)
    assert set(held["critics"]) == set(critic_parameters(module))
    assert set(held["state_dict"]) == set(adapter_parameters(module)) == set(held["callbacks"]["EMA"]["shadow"])
    with mock.patch.object(RestorationLoss, "__init__", side_effect=AssertionError):
        system = MegaSR.from_checkpoint(path)
    EMA.swap_in(next(c for c in trainer.callbacks if isinstance(c, EMA)), module)
    torch.testing.assert_close(system.restore(batch), module.eval().restore(batch))


def test_a_training_goes_on_with_its_critics_to_the_bit(tmp_path: Path):
    batch, terms, path = make_batch(), {"l1": 1.0, "vsd": 0.5, "gan": 0.1}, tmp_path / "middle.ckpt"
    settings = {"plugins": [CheckpointFiles()], "default_root_dir": tmp_path, "gradient_clip_val": 0.5}
    whole, curve = one_step(terms), LossCurve()
    fit(whole, batch, 4, callbacks=[curve], **settings)
    fit(one_step(terms), batch, 2, **settings).save_checkpoint(path)
    resumed, later = one_step(terms), LossCurve()
    trainer = lightning.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[later], **settings,
    )  # fmt: skip
    trainer.fit(resumed, torch.utils.data.DataLoader([batch] * 4, batch_size=None), ckpt_path=path, weights_only=True)
    assert later.losses == curve.losses[2:]
    for name, p in {**adapter_parameters(whole), **critic_parameters(whole)}.items():
        assert torch.equal(p, resumed.get_parameter(name)), name
    with pytest.raises(MegaSRError, match="its critics are not those of model.objective"):
        trainer.fit(one_step({"l1": 1.0}), torch.utils.data.DataLoader([batch], batch_size=None), ckpt_path=path,
                    weights_only=True)  # fmt: skip


def test_validation_takes_the_terms_without_draws():
    module, batch, logged = one_step({"l1": 1.0, "latent": 2.0, "gan": 9.0, "csd": 9.0}), make_batch(), {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    for _ in range(2):
        module.eval().validation_step(batch, 0)
        seen = estimate(module, batch)
        with torch.no_grad():
            expected = (seen.sr - seen.hq).abs().mean() + 2 * (seen.z0 - seen.z_hq).square().mean()
        assert logged["val/loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_term_of_a_users_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TERMS, "_entries", dict(TERMS._entries))
    TERMS.register("mine", lambda parts: Compared(lambda sr, hq: (sr - hq).abs().amax((1, 2, 3))))
    module, batch = one_step({"mine": 1.0}), make_batch()
    assert float(fit(module, batch, 1).callback_metrics["train/mine"]) > 0


SAMPLES = {"kind": "one_step", "terms": {"l1": 1.0}}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"terms": {"l1": 1.0}}, r"objective.terms would do nothing: objective.kind is denoise"),
        ({"weights_dir": "w"}, r"objective.weights_dir would do nothing"),
        ({"kind": "one_step"}, r"objective.kind one_step needs objective.terms: weights by name"),
        ({"kind": "few_step", "terms": {"l1": 0.0}}, r"needs objective.terms"),
        ({"kind": "one_step", "terms": {"l1": -1.0}}, r"objective.terms.l1 must be a weight of 0 or more, got -1.0"),
        ({**SAMPLES, "term_starts": {"l2": 5}}, r"objective.term_starts.l2 would do nothing: .* has no l2"),
        ({**SAMPLES, "term_starts": {"l1": 5}}, r"one term must count from the first step"),
        ({**SAMPLES, "critic": CriticConfig()}, r"objective.critic would do nothing: .* no csd, vsd or gan"),
        (
            {"kind": "one_step", "terms": {"csd": 1.0}, "critic": CriticConfig(lora_rank=8)},
            r"objective.critic.lora_rank would do nothing: objective.terms has no vsd",
        ),
        ({**SAMPLES, "timestep_fraction": 0.5}, r"objective.timestep_fraction would do nothing: .* is one_step"),
        ({**SAMPLES, "validation_timesteps": 2}, r"objective.validation_timesteps would do nothing"),
    ],
)
def test_settings_that_cannot_be(objective, message):
    with pytest.raises(UsageError, match=message):
        ObjectiveConfig(**objective)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": SamplerConfig()}, "objective.kind one_step needs sampler.num_steps 1, got 20"),
        ({"sampler": SamplerConfig(num_steps=1, solver="euler")}, "leave sampler.solver out, got euler"),
        ({"terms": {"nothing": 1.0}}, "objective.terms"),
        (
            {"adapter": AdapterConfig(encoder_lora=1), "sampler": SamplerConfig(num_steps=1, start="noise")},
            "adapter.encoder_lora would do nothing: .* got one_step and noise",
        ),
        ({"terms": {"csd": 1.0}, "adapter": AdapterConfig(text=False)}, "objective.terms.csd .* needs adapter.text"),
    ],
)
def test_modules_that_cannot_be(changes, message):
    with pytest.raises(UsageError, match=message):
        one_step(changes.pop("terms", {"l1": 1.0}), **changes)


def test_a_denoiser_cannot_start_from_the_noiseless_latent():
    with pytest.raises(UsageError, match="noiseless_lq needs an adapter trained so"):
        make_module(sampler=ONE_STEP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": (0.5, 0.2)}, "objective.critic.timesteps must be two ascending fractions"),
        ({"lora_rank": 0}, "objective.critic.lora_rank must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "objective.critic.learning_rate must be positive"),
        ({"guidance_scale": float("nan")}, "objective.critic.guidance_scale must not be negative, got nan"),
    ],
)
def test_critics_that_cannot_be(changes, message):
    with pytest.raises(UsageError, match=message):
        CriticConfig(**changes)
