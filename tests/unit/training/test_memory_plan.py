"""The predicted peak is what a step really takes; strategies are arithmetic; advice is the first thing that fits."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.training import memory_plan
from megasr.training.memory_plan import GIB, LiveBytes, MemoryPlan, MemoryTrace, Planner, advise
from megasr.training.memory_setup import TrainingSetup, WeightlessParts, module_arguments
from tests.helpers.measured_memory import measure_step
from tests.helpers.training import prior_folder

TINY = TrainingSetup(
    {"prior": "tiny", "adapter": {"guidance": ["canny"]}}, batch_size=2, crop_size_px=128, on_gpu=False
)


def test_lpips_shares_a_network_with_a_discriminator_on_vgg16_alone() -> None:
    parts = WeightlessParts()
    lpips, *others = (parts.perceptual(name, None) for name in ("lpips_vgg", "vgg16", "tiny", "dists"))
    assert [lpips.features is other for other in others] == [True, False, False]


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner()


def _small(**changes: object) -> TrainingSetup:
    model = {"prior": prior_folder(), "adapter": {"guidance": ["noise"], "saft_width": 8}}
    return replace(TrainingSetup(model, batch_size=2, crop_size_px=64, on_gpu=False), **changes)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("recomputes", [False, True])
def test_the_prediction_is_what_the_allocator_gives_out(planner: Planner, recomputes: bool) -> None:
    setup = TINY.with_model("adapter", {"guidance": ["noise"], "gradient_checkpointing": recomputes})
    peak, state = measure_step(setup)
    plan = planner.plan(setup)
    assert plan.total_gib * GIB == pytest.approx(peak, rel=0.02)
    assert plan.phases["between"] == pytest.approx(state, rel=0.02)


def test_a_small_prior_needs_what_the_allocator_gives_out(planner: Planner) -> None:
    peak, _ = measure_step(_small())
    assert planner.plan(_small()).total_gib * GIB == pytest.approx(peak, rel=0.02)


ONE_STEP = {
    "adapter": {"prior_lora": 2, "controlnet": False},
    "sampler": {"num_steps": 1, "start": "noiseless_lq", "start_fraction": 0.25},
    "objective": {"kind": "one_step", "terms": {"l1": 1.0, "vsd": 1.0}, "critic": {"lora_rank": 2}},
}


def test_one_step_training_of_a_lora_with_a_critic_needs_what_the_allocator_gives_out(planner: Planner) -> None:
    setup = _small()
    setup = replace(setup, model={**setup.model, **ONE_STEP})
    peak, _ = measure_step(setup)
    assert planner.plan(setup).total_gib * GIB == pytest.approx(peak, rel=0.02)


def test_terms_that_join_later_are_counted(planner: Planner) -> None:
    setup = _small()
    later = {**ONE_STEP, "objective": {**ONE_STEP["objective"], "term_starts": {"vsd": 1000}}}
    totals = [planner.plan(replace(setup, model={**setup.model, **model})).total_gib for model in (ONE_STEP, later)]
    assert totals[0] == totals[1]


def test_a_storage_is_counted_until_its_last_owner_is_gone() -> None:
    with LiveBytes() as tracker:
        x = torch.zeros(1000)
        view = x[:10]
        assert tracker.totals["activations"] == 4000
        del x
        assert tracker.totals["activations"] == 4000
        kept = weakref.ref(view)
        del view
        gc.collect()
        assert kept() is None
        assert tracker.totals["activations"] == 0
    assert max(row[-1] for row in tracker.rows) == 4000


def test_saved_tensors_live_until_the_backward_pass() -> None:
    weight = torch.ones(1000, requires_grad=True)
    with LiveBytes() as tracker:
        loss = (weight.exp() * 2).sum()
        assert tracker.totals["activations"] == 4000 + 4  # exp's result, and the sum
        loss.backward()
        weight.grad = None
    assert tracker.totals["activations"] == 4


@pytest.mark.slow
def test_a_larger_batch_and_recomputing_change_the_activations_alone(planner: Planner) -> None:
    two, four = planner.plan(_small()), planner.plan(_small(batch_size=4))
    assert 1.8 < four.parts["activations"] / two.parts["activations"] < 2.1
    less = planner.plan(_small().with_model("adapter.gradient_checkpointing", True))
    assert less.parts["activations"] < 0.8 * two.parts["activations"]
    for name in ("frozen weights", "trained weights", "gradients", "optimizer state"):
        assert two.parts[name] == four.parts[name] == less.parts[name] > 0


def test_strategies(planner: Planner) -> None:
    single = planner.plan(_small()).parts
    trained = single["trained weights"]
    assert single["gradients"] == trained
    assert single["optimizer state"] == pytest.approx(2 * trained, rel=0.01)
    ddp = planner.plan(_small(strategy="ddp", devices=4, ema=True)).parts
    assert ddp == single | {"gradient buckets": trained, "EMA": trained}
    viewed = planner.plan(_small(strategy="ddp", devices=4, bucket_view=True)).parts
    assert viewed["gradients"] == 0
    assert viewed["gradient buckets"] == trained
    fsdp = planner.plan(_small(strategy="fsdp2", devices=4, ema=True)).parts
    for name in ("trained weights", "gradients", "optimizer state"):
        assert fsdp[name] == single[name] / 4
    assert fsdp["EMA"] == trained / 4
    assert fsdp["frozen weights"] == single["frozen weights"]
    sharded = planner.plan(_small(strategy="fsdp2", devices=4).with_model("shard_frozen", True)).parts
    assert sharded["frozen weights"] == single["frozen weights"] / 4


def test_an_extractor_that_is_not_here_is_left_out_and_one_that_is_here_is_counted(planner: Planner) -> None:
    setup = _small().with_model("adapter", {"guidance": ["hed"], "saft_width": 8})
    here, absent = planner.plan(setup), planner.plan(setup.with_model("extractors.sources", {"hed": "nowhere"}))
    assert absent.notes == ("the extractor of hed is not on this machine, and is not counted",)
    assert not here.notes
    assert here.parts["frozen weights"] > absent.parts["frozen weights"]
    assert here.parts["activations"] == pytest.approx(absent.parts["activations"], rel=0.01)


def test_eight_bit_moments_take_two_bytes_for_each_trained_value(planner: Planner) -> None:
    plan = planner.plan(_small().with_model("optimizer.state_bits", 8))
    assert plan.parts["optimizer state"] == pytest.approx(plan.parts["trained weights"] / 4 * (2 + 1 / 32))


@pytest.mark.slow
def test_half_of_the_bytes_of_frozen_weights(planner: Planner) -> None:
    mixed = _small(precision="bf16-mixed")
    full, half = planner.plan(mixed), planner.plan(mixed.with_model("frozen_dtype", "bfloat16"))
    assert half.parts["frozen weights"] == pytest.approx(full.parts["frozen weights"] / 2, rel=0.02)
    # Autocast copies every frozen weight that it meets, and keeps the copy for the backward pass.
    assert half.parts["activations"] < full.parts["activations"]


@pytest.mark.slow
def test_blocks_are_computed_again_under_the_autocast_of_a_gpu(planner: Planner) -> None:
    setup = _small(on_gpu=True, precision="bf16-mixed").with_model("adapter.gradient_checkpointing", True)
    assert planner.plan(setup).parts["activations"] > 0


@pytest.mark.slow
def test_gradients_of_earlier_micro_batches_stay(planner: Planner) -> None:
    once, twice = planner.plan(_small()), planner.plan(_small(accumulation=2))
    extra = twice.phases["backward"] - once.phases["backward"]
    assert 0 < extra <= 1.1 * once.parts["trained weights"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"precision": "8-true"}, "trainer.precision 8-true"), ({"batch_size": 0}, "batch_size must be at least 1")],
)
def test_what_cannot_be_planned_is_said(planner: Planner, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planner.plan(_small(**changes))


def test_a_step_that_fails_is_one_error(planner: Planner) -> None:
    with pytest.raises(MegaSRError, match="training step fails"):
        planner.plan(_small().with_model("frozen_dtype", "bfloat16"))  # float32 meets bfloat16 without autocast


def test_a_prior_that_is_not_here_is_said(planner: Planner) -> None:
    with pytest.raises((MegaSRError, UsageError), match="no-such"):
        planner.plan(_small().with_model("prior", "no-such/prior"))


class MadeUpPlanner(Planner):
    """Plans of made-up numbers, in GiB: advice is about their order alone."""

    def plan(self, setup: TrainingSetup) -> MemoryPlan:
        adapter, optimizer = setup.model["adapter"], setup.model.get("optimizer", {})
        parts = {
            "frozen weights": 7.0 if setup.frozen_dtype == torch.float32 else 3.5,
            "optimizer state": 3.0 if not optimizer.get("state_bits") else 0.8,
            "activations": setup.batch_size * (2.0 if adapter.get("gradient_checkpointing") else 4.0),
            "gradient buckets": 0.0 if setup.bucket_view or setup.strategy == "single" else 1.0,
        }
        if setup.frozen_dtype != torch.float32 and setup.precision == "32-true":
            raise MegaSRError("the dtypes differ")
        return MemoryPlan(setup, "forward", {name: value * GIB for name, value in parts.items()}, {})


FULL = TrainingSetup({"adapter": {}}, 4, 512, devices=2, strategy="ddp", precision="bf16-mixed")  # 27 GiB as above
CHECKPOINTING, HALF = "model.adapter.gradient_checkpointing: true", "model.frozen_dtype: bfloat16"


@pytest.mark.parametrize(
    ("usable_gib", "lines"),
    [
        (20, [CHECKPOINTING]),
        (16, [CHECKPOINTING, HALF]),
        (15, [CHECKPOINTING, HALF, *memory_plan._BUCKET_VIEW]),
        (13.5, [CHECKPOINTING, HALF, *memory_plan._BUCKET_VIEW, "model.optimizer.state_bits: 8"]),
    ],
)
def test_advice_is_the_first_combination_that_fits(usable_gib: float, lines: list[str]) -> None:
    advice = advise(MadeUpPlanner(), FULL, usable_gib)
    assert advice is not None
    assert list(advice.lines) == lines
    assert advice.plan.total_gib <= usable_gib


def test_advice_keeps_the_global_batch() -> None:
    advice = advise(MadeUpPlanner(), FULL, 7)
    assert advice is not None
    assert advice.plan.setup.global_batch == FULL.global_batch
    assert advice.lines[-2:] == ("data.init_args.batch_size: 1", "trainer.accumulate_grad_batches: 4")


def test_advice_leaves_out_what_cannot_be_run_and_says_when_nothing_fits() -> None:
    advice = advise(MadeUpPlanner(), replace(FULL, precision="32-true"), 18)
    assert advice is not None
    assert HALF not in advice.lines
    assert advise(MadeUpPlanner(), FULL, 1) is None


def test_module_arguments_are_typed_and_lack_what_a_plan_does_itself() -> None:
    model = {
        "prior": "tiny",
        "init": "x.ckpt",
        "frozen_dtype": "bfloat16",
        "optimizer": {"state_bits": 8, "decay_share": 1},
    }
    arguments = module_arguments(model | {"adapter": {"guidance": ["hed"]}, "vision": None})
    assert arguments.keys() == {"prior", "optimizer", "adapter", "vision"}
    assert arguments["adapter"].guidance == ("hed",)
    assert arguments["optimizer"].decay_share == 0


def test_setups_that_differ_in_arithmetic_alone_share_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = memory_plan.trace_setup

    def counted(setup: TrainingSetup) -> MemoryTrace:
        made.append(setup)
        return real(setup)

    monkeypatch.setattr(memory_plan, "trace_setup", counted)
    planner = Planner()
    for setup in (
        _small(),
        _small(strategy="ddp", devices=2),
        _small(ema=True).with_model("optimizer.state_bits", 8),
    ):
        planner.plan(setup)
    assert len(made) == 1
