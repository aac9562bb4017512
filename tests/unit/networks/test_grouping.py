"""The other forms of fusion and of the connector: which maps share a SAFT, where they are fused, and what is shared."""

import pytest
import torch

from megasr.errors import UsageError
from megasr.guidance.registry import resolve_guidance
from megasr.networks.msfm import count_channels, group_maps
from megasr.networks.network import MegaSRNetwork
from megasr.networks.parameters import parameter_table
from megasr.training.probes import SiteProbes, trained_parts
from tests.helpers.networks import IMAGE_WIDTH, adapter, predict, random_inputs, random_prior, train_steps

TYPES = ("canny", "noise", "sketch", "superpixel")  # channels 1, 1, 1, 3; the second and the last are regions


def names(groups):
    return [tuple(g.name for g in group) for group in (*groups.separate, groups.aggregated)]


def test_which_maps_share_a_saft():
    types = resolve_guidance(TYPES)
    assert names(group_maps(types, None)) == [("canny",), ("sketch",), ("noise", "superpixel")]
    assert names(group_maps(types, "sum")) == [("canny",), ("sketch",), ("noise",), ("superpixel",), ()]
    assert names(group_maps(types, "concat")) == [("canny", "sketch", "noise", "superpixel"), ()]
    assert group_maps(types, "concat").names == ["canny+sketch+noise+superpixel"]
    assert all(names(group_maps([], fusion)) == [()] for fusion in (None, "sum", "concat"))


def test_the_stacks_hold_the_maps_in_the_order_of_the_group():
    types = resolve_guidance(TYPES)
    maps = {g.name: torch.full((1, g.channels, 2, 2), float(i)) for i, g in enumerate(types)}
    separate, aggregated = group_maps(types, None).stack(maps)
    assert [m[0, :, 0, 0].tolist() for m in (*separate, aggregated)] == [[0], [2], [1, 3, 3, 3]]
    (stacked,), nothing = group_maps(types, "concat").stack(maps)
    assert stacked[0, :, 0, 0].tolist() == [0, 2, 1, 3, 3, 3]
    assert nothing is None
    assert count_channels(group_maps(types, "concat").separate[0]) == 6


@pytest.mark.parametrize(("fusion", "inputs"), [(None, [1, 1, 4]), ("sum", [1, 1, 1, 3]), ("concat", [6])])
def test_every_site_has_the_safts_of_its_form(fusion, inputs):
    network = MegaSRNetwork(random_prior(), adapter(guidance=TYPES, fusion=fusion))
    for site in (*network.unet.sites, *network.controlnet.sites):
        assert [saft.mlp[0].in_channels for saft in site.msfm.safts] == inputs
        assert (site.msfm.aggregation is None) == (fusion is not None)
    probed = {key.split("/")[2] for key in SiteProbes(network).keys}
    branches = {None: {"canny", "sketch", "region"}, "sum": set(TYPES), "concat": {"canny+sketch+noise+superpixel"}}
    assert probed == branches[fusion]


def test_patches_keep_where_in_its_cell_an_edge_runs():
    prior, side = random_prior(), 4  # of z
    cell = prior.downsampling
    left, right = torch.zeros(2, 1, 1, side * cell, side * cell)
    left[..., ::cell], right[..., cell - 1 :: cell] = 1, 1

    def seen(patch: int) -> dict[int, list[torch.Tensor]]:
        network = MegaSRNetwork(prior, adapter(guidance=("canny",), map_patch=patch))
        both = [network.saft_maps({"canny": m}, side, side) for m in (left, right)]
        return {site.level: [inputs[i][0] for inputs in both] for i, (_, site) in enumerate(network.sites)}

    coarse, fine = seen(1), seen(cell)
    assert all(torch.equal(*maps) for maps in coarse.values())
    assert not torch.equal(*fine[0])
    for level, maps in fine.items():
        for patches, mean in zip(maps, coarse[level], strict=True):
            assert patches.shape == (1, cell**2, side >> level, side >> level)
            assert torch.allclose(patches.mean(1, keepdim=True), mean)


@pytest.mark.parametrize("fusion", ["sum", "concat"])
@pytest.mark.parametrize("changed", TYPES)
def test_every_map_is_heard_in_every_form(fusion, changed):
    prior = random_prior()
    inputs = random_inputs(prior)
    network = MegaSRNetwork(prior, adapter(guidance=TYPES, fusion=fusion))
    train_steps(network, inputs, 2)
    with torch.no_grad():
        before = predict(network, inputs)
        inputs["maps"][changed] = 1 - inputs["maps"][changed]
        assert not torch.equal(predict(network, inputs), before)


@pytest.mark.parametrize(("place", "unet", "controlnet"), [(None, True, True), ("unet", True, False)])
def test_maps_are_fused_where_it_is_said(place, unet, controlnet):
    network = MegaSRNetwork(random_prior(), adapter(guidance=TYPES, fusion_in=place))
    assert all((site.msfm is not None) == unet for site in network.unet.sites)
    assert all((site.msfm is not None) == controlnet for site in network.controlnet.sites)


def test_the_figures_msfm_is_that_of_both_halves():
    prior = random_prior()

    def trained(place):
        rows = {row.part: row for row in parameter_table(prior, adapter(guidance=TYPES, fusion_in=place))}
        return {part: row.trained for part, row in rows.items() if part.endswith("MSFM")}

    assert trained("unet") | trained("controlnet") == trained(None)
    assert set(trained("controlnet")) == {"ControlNet MSFM"}


def test_maps_without_a_place_are_refused():
    with pytest.raises(UsageError, match=r"fusion_in is controlnet, but adapter\.controlnet is off"):
        adapter(guidance=TYPES, fusion_in="controlnet", controlnet=False)


def test_one_connector_for_all_sites():
    prior = random_prior()
    shared = MegaSRNetwork(prior, adapter(image=True, connector="shared"))
    own = MegaSRNetwork(prior, adapter(image=True))
    sites, width = (*own.unet.sites, *own.controlnet.sites), prior.unet.config.cross_attention_dim
    assert own.connector is None
    assert [p.shape for p in shared.connector.parameters()] == [(width, IMAGE_WIDTH), (width,)]
    connector = width * (IMAGE_WIDTH + 1)
    saved = sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in shared.parameters())
    assert saved == (len(sites) - 1) * connector
    rows = {row.part: row for row in parameter_table(random_prior(), adapter(image=True, connector="shared"))}
    assert (rows["CSM connector"].trained, rows["CSM connector"].frozen) == (connector, 0)
    assert any(p is shared.connector.weight for p in trained_parts(shared)["csm"])


def test_with_one_connector_every_site_sees_the_same_translation():
    prior = random_prior()
    inputs = random_inputs(prior)
    shared = MegaSRNetwork(prior, adapter(image=True, connector="shared"))
    own = MegaSRNetwork(prior, adapter(image=True))
    for network in (shared, own):
        for name, parameter in network.named_parameters():
            if ".csm.gate." in name:
                torch.nn.init.eye_(parameter) if parameter.dim() == 2 else torch.nn.init.zeros_(parameter)
    for site in (*own.unet.sites, *own.controlnet.sites):
        site.csm.connector.load_state_dict(shared.connector.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(predict(shared, inputs), predict(own, inputs))
        shared.connector.weight.zero_()
        assert not torch.allclose(predict(shared, inputs), predict(own, inputs))
