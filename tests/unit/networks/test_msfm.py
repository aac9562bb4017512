"""MSFM against the formulas of its docstring, written out the long way."""

import pytest
import torch
import torch.nn.functional as F

from megasr.networks.msfm import MSFM, SAFT, RegionAggregation

C, GROUPS = 8, 4


def make(fusion_init, edges=(1, 1), regions=4, stage1="v2"):
    torch.manual_seed(0)
    msfm = MSFM(C, GROUPS, edges, regions, 6, fusion_init, stage1)
    for parameter in msfm.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = torch.randn(2, C, 5, 7)
    return msfm, features, [torch.rand(2, c, 5, 7) for c in edges], torch.rand(2, regions, 5, 7)


def test_as_drawn_is_the_sum_of_safts_on_the_normalised_features():
    msfm, features, edges, regions = make("as_drawn")
    normalised = F.group_norm(features, GROUPS)
    expected = 0
    for saft, guidance in zip(msfm.safts, [*edges, msfm.aggregation(regions)], strict=True):
        gamma, beta = saft(guidance)
        expected = expected + normalised * (1 + gamma) + beta
    torch.testing.assert_close(msfm(features, msfm.modulate(msfm.saft_maps(edges, regions))), expected)


def test_residual_keeps_the_features_and_drops_the_one():
    msfm, features, edges, regions = make("residual")
    normalised = F.group_norm(features, GROUPS)
    expected = features
    for saft, guidance in zip(msfm.safts, [*edges, msfm.aggregation(regions)], strict=True):
        gamma, beta = saft(guidance)
        expected = expected + normalised * gamma + beta
    torch.testing.assert_close(msfm(features, msfm.modulate(msfm.saft_maps(edges, regions))), expected)


def test_stage_1_versions():
    regions = torch.rand(2, 4, 5, 7)
    for version in ("v1", "v2"):
        torch.manual_seed(1)
        module = RegionAggregation(4, version)
        convolved = F.group_norm(module.features[0](regions), 1, module.features[1].weight, module.features[1].bias)
        if version == "v2":
            weights = module.attention(F.silu(convolved))
            expected = regions * weights
        else:
            weights = module.attention(convolved)
            expected = convolved * weights
        assert weights.shape == (2, 4, 1, 1) and weights.min() > 0 and weights.max() < 1
        torch.testing.assert_close(module(regions), expected)


def test_edges_have_their_own_saft_and_regions_share_one():
    msfm, *_ = make("residual", edges=(1, 1, 1), regions=7)
    assert len(msfm.safts) == 4
    assert [saft.mlp[0].in_channels for saft in msfm.safts] == [1, 1, 1, 7]
    assert make("residual", edges=(), regions=4)[0].aggregation is not None
    assert MSFM(C, GROUPS, (1,), 0, 6, "residual", "v2").aggregation is None


def test_saft_sees_three_one_by_one_layers():
    saft = SAFT(3, C, 6, zero_init=True)
    convolutions = [m for m in saft.mlp if isinstance(m, torch.nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(1, 1)] * 3
    gamma, beta = saft(torch.rand(1, 3, 4, 4))
    assert gamma.abs().max() == 0 and beta.abs().max() == 0


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_a_fresh_saft_keeps_the_variation_of_its_map(channels):
    """What does not reach the last layer cannot be learnt from: they start at zero."""
    maps = torch.rand(4, channels, 32, 32)
    kept = []
    for seed in range(10):
        torch.manual_seed(seed)
        hidden = SAFT(channels, C, 32, zero_init=True).mlp(maps)
        kept.append(hidden.std((2, 3)).mean() / maps.std((2, 3)).mean())
    assert 0.3 < torch.stack(kept).mean() < 2


def test_modulation_depends_on_the_maps_and_not_on_the_features():
    msfm, features, edges, regions = make("as_drawn")
    scale, shift = msfm.modulate(msfm.saft_maps(edges, regions))
    other_scale, other_shift = msfm.modulate(msfm.saft_maps([edge.flip(-1) for edge in edges], regions))
    assert not torch.equal(scale, other_scale) and not torch.equal(shift, other_shift)
    reused = msfm(features * 2, (scale, shift))
    torch.testing.assert_close(reused, F.group_norm(features * 2, GROUPS) * scale + shift)
