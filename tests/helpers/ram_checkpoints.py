"""Small random checkpoints of RAM in the public format, and what RAM makes of an image, computed plainly from them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]

# Two stages of two blocks in windows of 4 patches: images of 32 px. Labels, and the widths of the tagging head.
WIDTHS, HEADS, WINDOW, SIZE_PX = (16, 32), (2, 4), 4, 32
LABELS = ("3D glasses", "abacus", "beach", "cat", "dog", "wood")
CONTEXT, WIDTH, HIDDEN = 12, 16, 24
SWIN_LARGE = {"widths": (192, 384, 768, 1536), "heads": (6, 12, 24, 48), "depths": (2, 2, 18, 2), "window": 12}


def encoder_shapes(widths: Any, heads: Any, depths: Any, window: int) -> dict[str, tuple[int, ...]]:
    """Swin's parameters as Microsoft's code calls them: patches are merged at the end of a stage."""
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (widths[0], 3, 4, 4)}
    shapes |= dict.fromkeys(("patch_embed.proj.bias", "patch_embed.norm.weight", "patch_embed.norm.bias"), (widths[0],))
    for stage, width in enumerate(widths):
        for block in range(depths[stage]):
            at = f"layers.{stage}.blocks.{block}."
            shapes |= {
                f"{at}{n}.{p}": (width,) for n in ("norm1", "norm2", "attn.proj", "mlp.fc2") for p in ("weight", "bias")
            }
            shapes[f"{at}attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads[stage])
            shapes |= {f"{at}attn.qkv.weight": (3 * width, width), f"{at}attn.qkv.bias": (3 * width,)}
            shapes |= {f"{at}attn.proj.weight": (width, width), f"{at}mlp.fc1.weight": (4 * width, width)}
            shapes |= {f"{at}mlp.fc1.bias": (4 * width,), f"{at}mlp.fc2.weight": (width, 4 * width)}
        if stage + 1 < len(widths):
            at = f"layers.{stage}.downsample."
            shapes |= {f"{at}norm.weight": (4 * width,), f"{at}norm.bias": (4 * width,)}
            shapes[f"{at}reduction.weight"] = (2 * width, 4 * width)
    shapes |= {"norm.weight": (widths[-1],), "norm.bias": (widths[-1],)}
    return {f"visual_encoder.{name}": shape for name, shape in shapes.items()}


def head_shapes(encoder_width: int, labels: int, context: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """The tagging head and what is round it."""
    shapes: dict[str, tuple[int, ...]] = {"label_embed": (labels, context)}
    linear = {"image_proj": (context, encoder_width), "wordvec_proj": (width, context), "fc": (1, width)}
    for layer in range(2):
        at = f"tagging_head.encoder.layer.{layer}."
        for name, inputs in (("query", width), ("key", context), ("value", context)):
            linear[f"{at}crossattention.self.{name}"] = (width, inputs)
        linear |= {f"{at}crossattention.output.dense": (width, width), f"{at}intermediate.dense": (hidden, width)}
        linear[f"{at}output.dense"] = (width, hidden)
        for norm in ("crossattention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}{norm}.weight": (width,), f"{at}{norm}.bias": (width,)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    """Random values, with which no label and no image are like another."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}
    scales = {name: value + 1 for name, value in state.items() if name.endswith("weight") and value.ndim == 1}
    wide = {name: value * 10 for name, value in state.items() if name == "label_embed" or "self.query" in name}
    return state | wide | scales


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """A linear layer with its update, if the state holds one: x (W + [B A] / r)."""
    y = x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
    if f"{name}.lora_A" not in state:
        return y
    a, b = state[f"{name}.lora_A"], state[f"{name}.lora_B"]
    if not name.endswith("qkv"):
        return y + x @ a.T @ b.T / 8
    width = len(b) // 2
    query, value = x @ a[:8].T @ b[:width].T / 8, x @ a[8:].T @ b[width:].T / 8
    return y + torch.cat([query, torch.zeros_like(query), value], -1)


def norm(state: State, name: str, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, bias: Any) -> torch.Tensor:
    """(T, W), (N, W), (N, W) -> (T, W), one head after the other."""
    parts = zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), bias, strict=True)
    return torch.cat([(q @ k.T / q.shape[1] ** 0.5 + b).softmax(-1) @ v for q, k, v, b in parts], -1)


def swin_block(state: State, at: str, x: torch.Tensor, heads: int, shift: int) -> torch.Tensor:
    """(S, S, C): attention inside every window of the shifted picture; what the shift joins does not see each other."""
    side, patches = len(x), [(row, column) for row in range(WINDOW) for column in range(WINDOW)]
    place = [[(r - s + WINDOW - 1) * (2 * WINDOW - 1) + c - t + WINDOW - 1 for s, t in patches] for r, c in patches]
    table = state[f"{at}attn.relative_position_bias_table"][torch.tensor(place)]
    normed, seen = norm(state, f"{at}norm1", x), torch.zeros_like(x)
    for top in range(0, side, WINDOW):
        for left in range(0, side, WINDOW):
            rows = torch.tensor([(top + r + shift) for r, _ in patches])
            columns = torch.tensor([(left + c + shift) for _, c in patches])
            area = (rows >= side).long() * 2 + (columns >= side).long()
            apart = (area[:, None] != area[None]) * -100.0
            tokens = normed[rows % side, columns % side]
            bias = [table[..., head] + apart for head in range(heads)]
            seen[rows % side, columns % side] = attend(
                *linear(state, f"{at}attn.qkv", tokens).chunk(3, -1), heads, bias
            )
    x = x + linear(state, f"{at}attn.proj", seen)
    return x + linear(state, f"{at}mlp.fc2", F.gelu(linear(state, f"{at}mlp.fc1", norm(state, f"{at}norm2", x))))


def plain_features(state: State, image: torch.Tensor) -> torch.Tensor:
    """(3, H, H) -> (1 + N, CONTEXT)."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = (image - mean[:, None, None]) / std[:, None, None]
    weight, bias = (state[f"visual_encoder.patch_embed.proj.{name}"] for name in ("weight", "bias"))
    x = norm(state, "visual_encoder.patch_embed.norm", F.conv2d(image[None], weight, bias, 4)[0].permute(1, 2, 0))
    for stage, heads in enumerate(HEADS):
        for block in range(2):
            # A stage that is one window is not shifted.
            shift = WINDOW // 2 if block % 2 and len(x) > WINDOW else 0
            x = swin_block(state, f"visual_encoder.layers.{stage}.blocks.{block}.", x, heads, shift)
        at = f"visual_encoder.layers.{stage}.downsample"
        if stage == 0:
            merged = torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
            x = norm(state, f"{at}.norm", merged) @ state[f"{at}.reduction.weight"].T
    x = norm(state, "visual_encoder.norm", x).flatten(0, 1)
    return linear(state, "image_proj", torch.cat([x.mean(0, keepdim=True), x]))


def plain_logits(state: State, features: torch.Tensor) -> torch.Tensor:
    """(1 + N, CONTEXT) -> (T,)."""
    x = linear(state, "wordvec_proj", state["label_embed"]).relu()
    for layer in range(2):
        at = f"tagging_head.encoder.layer.{layer}."
        look = f"{at}crossattention.self."
        query, key, value = (
            linear(state, f"{look}query", x),
            *(linear(state, look + n, features) for n in ("key", "value")),
        )
        seen = linear(state, f"{at}crossattention.output.dense", attend(query, key, value, 4, [0] * 4))
        x = norm(state, f"{at}crossattention.output.LayerNorm", seen + x, 1e-12)
        hidden = F.gelu(linear(state, f"{at}intermediate.dense", x))
        x = norm(state, f"{at}output.LayerNorm", linear(state, f"{at}output.dense", hidden) + x, 1e-12)
    return linear(state, "fc", x)[:, 0]
