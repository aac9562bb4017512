"""Draws are functions of their key."""

import torch

from megasr.rng import derive_seed, keyed_normal, keyed_uniform, numpy_generator, seeded_initialisation


def test_keys_and_their_order_and_types_matter():
    seeds = [derive_seed(0), derive_seed(1), derive_seed(0, "a"), derive_seed(0, "a", "b"), derive_seed(0, "b", "a")]
    seeds += [derive_seed(0, "ab"), derive_seed(0, 1), derive_seed(0, "1")]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "a") == 7860516897884754361  # stored: runs of other machines and versions must agree


def test_noise_of_a_sample_does_not_depend_on_the_batch():
    together = keyed_normal(3, ["a", "b", "c"], (2, 4), "noise")
    assert torch.equal(together[1:2], keyed_normal(3, ["b"], (2, 4), "noise"))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[:1], keyed_normal(3, ["a"], (2, 4), "other purpose"))


def test_distributions():
    keys = [str(i) for i in range(4000)]
    normal, uniform = keyed_normal(0, keys, (1,)), keyed_uniform(0, keys)
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    assert abs(uniform.mean() - 0.5) < 0.02 and uniform.min() >= 0 and uniform.max() < 1
    assert numpy_generator(0, "x").random() == numpy_generator(0, "x").random()


def test_seeded_initialisation_is_keyed_and_leaves_no_trace():
    def layer(*key):
        with seeded_initialisation(*key):
            return torch.nn.Linear(3, 3).weight

    before = torch.random.get_rng_state()
    assert torch.equal(layer(0, "a"), layer(0, "a"))
    assert not torch.equal(layer(0, "a"), layer(0, "b")) and not torch.equal(layer(0, "a"), layer(1, "a"))
    assert torch.equal(before, torch.random.get_rng_state())
