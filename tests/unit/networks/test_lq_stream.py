"""The stream of lq's tokens in an MMDiT: against a plain form of DiT4SR's equations, and where it is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from megasr.errors import UsageError
from megasr.networks.config import AdapterConfig
from megasr.networks.network import MegaSRNetwork
from megasr.networks.parameters import build_on_meta, parameter_table
from megasr.networks.sites import SiteCondition
from megasr.prior import Prior, load_prior
from megasr.training.probes import SiteProbes, trained_parts
from megasr.training.sharding import sharding_units
from tests.helpers.inference import move_weights
from tests.helpers.networks import adapter, random_inputs, random_prior
from tests.helpers.sd3 import sd3_folder, write_sd3_prior

HEADS, HEIGHT, WIDTH = 4, 3, 5
ONLY_STREAM = adapter(controlnet=False, lq_stream=True)
EVERYTHING = adapter(controlnet=False, lq_stream=True, image=True, guidance=("canny", "superpixel"))


@pytest.fixture(scope="module")
def prior() -> Prior:
    return load_prior(sd3_folder())


def predict(network: MegaSRNetwork, inputs: dict[str, Any], lq_up: torch.Tensor, prior: Prior) -> torch.Tensor:
    made = network.conditions(lq_up, inputs["semantics"], inputs["maps"], prior.encode(lq_up))
    return network(inputs["z_t"], inputs["timesteps"], made)


def plain_attention(
    attention: nn.Module, own: nn.Module, image: torch.Tensor, lq: torch.Tensor, text: torch.Tensor | None
) -> list[torch.Tensor]:
    """Equations 1 and 2 of the paper with the LR residual, one stream after the other."""

    def heads(tokens: torch.Tensor, norm: nn.Module | None = None) -> torch.Tensor:
        split = tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return split if norm is None else norm(split)

    q = [heads(attention.to_q(image), attention.norm_q), heads(own.to_q(attention.to_q(lq)), attention.norm_q)]
    k = [heads(attention.to_k(image), attention.norm_k), heads(own.to_k(attention.to_k(lq)), attention.norm_k)]
    v = [heads(attention.to_v(image)), heads(own.to_v(attention.to_v(lq)))]
    if text is not None:
        q.append(heads(attention.add_q_proj(text), attention.norm_added_q))
        k.append(heads(attention.add_k_proj(text), attention.norm_added_k))
        v.append(heads(attention.add_v_proj(text)))
    keys, values = torch.cat(k, 2), torch.cat(v, 2)
    read = [((part @ keys.mT) / part.shape[-1] ** 0.5).softmax(-1) @ values for part in q]
    of_image, of_lq, *of_text = [part.transpose(1, 2).flatten(2) for part in read]
    return [attention.to_out[0](of_image), own.to_out(of_lq + lq), *(attention.to_add_out(part) for part in of_text)]


def plain_block(
    block: nn.Module, stream: nn.Module, image: torch.Tensor, lq: torch.Tensor, text: torch.Tensor, time: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    normed, gate, shift, scale, gate_ff, *dual = block.norm1(image, emb=time)
    normed_lq, _, _, _, _, *dual_lq = block.norm1(lq, emb=time)
    read = plain_attention(block.attn, stream.attn, normed, normed_lq, block.norm1_context(text, emb=time)[0])
    image, lq = (x + gate[:, None] * part for x, part in zip((image, lq), read[:2], strict=True))
    if dual:
        read = plain_attention(block.attn2, stream.attn2, dual[0], dual_lq[0], None)
        image, lq = (x + dual[1][:, None] * part for x, part in zip((image, lq), read, strict=True))
    enter, _, leave = block.ff.net
    hidden, hidden_lq = (enter(block.norm2(x) * (1 + scale[:, None]) + shift[:, None]) for x in (image, lq))
    rows = hidden_lq.unflatten(1, (HEIGHT, WIDTH)).permute(0, 3, 1, 2)
    weight, bias = stream.convolution.weight, stream.convolution.bias
    added = F.conv2d(rows, weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1).flatten(1, 2)
    return image + gate_ff[:, None] * leave(hidden + added), lq + gate_ff[:, None] * leave(hidden_lq)


@torch.no_grad()
@pytest.mark.parametrize("number", [0, 1])  # with a second attention, and without
def test_a_block_is_dit4srs(prior: Prior, number: int) -> None:
    network = move_weights(MegaSRNetwork(prior, ONLY_STREAM))
    block, site = network.sites[number]
    assert block.use_dual_attention == (number == 0)
    generator = torch.Generator().manual_seed(0)
    image, lq = (torch.randn(2, HEIGHT * WIDTH, 32, generator=generator) for _ in range(2))
    text, time = torch.randn(2, 6, 32, generator=generator), torch.randn(2, 32, generator=generator)
    streams = torch.cat([image, lq], dim=1).unflatten(1, (2 * HEIGHT, WIDTH))
    got, _ = site(block, streams, text, time, SiteCondition((), None, None, None))
    expected = plain_block(block, site.lq_stream, image, lq, text, time)
    torch.testing.assert_close(got.flatten(1, 2), torch.cat(expected, dim=1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_at_step_0_lq_is_not_read_yet_but_its_zero_keys_are_in_the_softmax(prior: Prior) -> None:
    network, inputs = MegaSRNetwork(prior, EVERYTHING), random_inputs(prior)
    for block, site in network.sites:
        for own, attention in ((site.lq_stream.attn, block.attn), (site.lq_stream.attn2, block.attn2)):
            assert (own is None) == (attention is None)
            if own is not None:
                zeros = (own.to_q, own.to_k, own.to_v)
                assert not any(p.any() for layer in zeros for p in layer.parameters())
                assert torch.equal(own.to_out.weight, attention.to_out[0].weight)
                assert own.to_out.weight is not attention.to_out[0].weight
    bare = prior.predict(inputs["z_t"], inputs["timesteps"], inputs["semantics"].text)
    before = predict(network, inputs, inputs["lq_up"], prior)
    assert not torch.allclose(before, bare, atol=1e-4)
    assert torch.equal(before, predict(network, inputs, 1 - inputs["lq_up"], prior))
    move_weights(network)
    first, second = (predict(network, inputs, image, prior) for image in (inputs["lq_up"], 1 - inputs["lq_up"]))
    assert not torch.allclose(first, second, atol=1e-4)


@torch.no_grad()
def test_images_that_are_not_square_and_norms_that_sd_3_has_not(tmp_path: Path) -> None:
    prior = load_prior(str(write_sd3_prior(tmp_path, qk_norm=None, dual_attention_layers=())))
    network, inputs = move_weights(MegaSRNetwork(prior, EVERYTHING)), random_inputs(prior)
    tall = {"z_t": inputs["z_t"].repeat(1, 1, 2, 1), "lq_up": inputs["lq_up"].repeat(1, 1, 2, 1)}
    predicted = predict(network, inputs | tall, tall["lq_up"], prior)
    assert predicted.shape == tall["z_t"].shape and predicted.isfinite().all()


@torch.no_grad()
def test_csm_and_msfm_act_on_the_image_alone(prior: Prior) -> None:
    network, inputs = MegaSRNetwork(prior, EVERYTHING), random_inputs(prior)
    block, site = network.sites[1]
    generator = torch.Generator().manual_seed(0)
    streams, text, time = (torch.randn(2, *shape, 32, generator=generator) for shape in ((8, 4), (6,), ()))
    lq_up = inputs["lq_up"]
    outputs = []
    for _ in range(2):
        made = network.conditions(lq_up, inputs["semantics"], inputs["maps"], prior.encode(lq_up))
        outputs.append(site(block, streams, text, time, made.unet[1])[0])
        move_weights(site.csm.gate)
        move_weights(site.msfm)
    before, after = outputs
    assert torch.equal(before[:, 4:], after[:, 4:])
    assert ((before[:, :4] - after[:, :4]).abs().amax(-1) > 1e-4).all()


@torch.no_grad()
def test_branches_are_measured_on_the_images_tokens(prior: Prior) -> None:
    network, inputs = move_weights(MegaSRNetwork(prior, EVERYTHING)), random_inputs(prior)
    seen: list[torch.Size] = []
    for block, site in network.sites:
        site.after_attention(block).register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    with SiteProbes(network) as probes:
        predict(network, inputs, inputs["lq_up"], prior)
        probes.take()
    strengths = probes.means(probes.totals(torch.device("cpu")))
    assert len(strengths) == len(probes.keys) == 3 * 3 and all(value > 0 for value in strengths.values())
    assert seen == [(2, 16, 32)] * 3
    assert set(trained_parts(network)) == {"lq_stream", "csm", "msfm"}


@torch.no_grad()
def test_every_module_of_a_sharding_unit_is_called_once(prior: Prior) -> None:
    # Without CSM, which calls the attention's output projection again.
    network, inputs = MegaSRNetwork(prior, replace(EVERYTHING, image=False)), random_inputs(prior)
    units, calls = [part for unit in sharding_units(network) for part in unit], Counter[int]()
    handles = [m.register_forward_hook(lambda module, *_: calls.update([id(module)])) for m in network.modules()]
    predict(network, inputs, inputs["lq_up"], prior)
    for handle in handles:
        handle.remove()
    assert {id(part): calls[id(part)] for part in units} == {id(part): 1 for part in units}
    owned = {id(p) for part in units for p in part.parameters()}
    assert {id(p) for site in network.unet.sites for p in site.lq_stream.parameters()} <= owned


def test_its_size_on_sd35() -> None:
    config = AdapterConfig(controlnet=False, lq_stream=True)
    rows = {row.part: row for row in parameter_table(build_on_meta("sd35-medium"), config)}
    attentions, width = 24 + 13, 1536
    expected = attentions * 4 * (width**2 + width) + 24 * 10 * 4 * width
    assert rows["MMDiT LQ stream"].sites == 24 and rows["MMDiT LQ stream"].trained == expected
    assert rows["all"].trained == expected and "ControlNet" not in rows


def test_where_it_cannot_be_it_is_refused() -> None:
    with pytest.raises(UsageError, match=r"adapter\.lq_stream and adapter\.controlnet are two ways of lq"):
        AdapterConfig(lq_stream=True)
    with pytest.raises(UsageError, match=r"adapter\.lq_stream needs a transformer's tokens, and this prior is a U-Net"):
        MegaSRNetwork(random_prior(), ONLY_STREAM)
