"""Attention over a flat pass (learner.rows): every row sees its group's prompt and, causally, itself.

Registered with transformers under a name of its own, so that the models stay transformers' own. Only full attention;
grouped queries are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from learner.rows import GroupLayout

ATTENTION_NAME = "synth_engine_rows"


def attend(
    module: torch.nn.Module,  # noqa: ARG001 - transformers passes the layer
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,  # noqa: ARG001 - none is ever made
    **options: Any,
) -> tuple[Tensor, None]:
    """[1, heads, T, D] queries, [1, kv heads, T, D] keys and values -> ([1, T, heads, D], None).

    `options` are transformers' `scaling` and our `layout`; without a layout the whole sequence is one causal row."""
    scaling: float | None = options["scaling"]
    layout: tuple[GroupLayout, ...] | None = options.get("layout")
    if layout is None:
        whole = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return whole.transpose(1, 2), None
    sizes = [size for each in layout for size in each.sizes]
    # One split instead of a slice per piece: the gradient of a split is a single concatenation.
    pieces = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    out: list[Tensor] = []
    for each in layout:
        q_T, k_T, v_T = next(pieces)
        seen = scaled_dot_product_attention(q_T, k_T, v_T, is_causal=True, scale=scaling, enable_gqa=True)
        out.append(seen[0].transpose(0, 1))
        for rows, width in each.blocks:
            q_BT, k_BT, v_BT = (_rows(piece, rows, width) for piece in next(pieces))
            seen = scaled_dot_product_attention(
                q_BT,
                torch.cat((k_T.expand(rows, -1, -1, -1), k_BT), dim=2),
                torch.cat((v_T.expand(rows, -1, -1, -1), v_BT), dim=2),
                attn_mask=_causal(width, each.prompt_tokens, query.device),
                scale=scaling,
                enable_gqa=True,
            )
            out.append(seen.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)[None], None


def _causal(width: int, prompt_tokens: int, device: torch.device) -> Tensor:
    """The mask of a row that follows its prompt: [width, prompt_tokens + width], true where it may look."""
    if device.type == "cuda":
        # Known to the fused kernels by name: nothing of that size is ever made.
        return causal_lower_right(width, prompt_tokens + width)
    return torch.ones(width, prompt_tokens + width, dtype=torch.bool).tril(prompt_tokens)


def _rows(piece: Tensor, rows: int, width: int) -> Tensor:
    """[1, heads, rows * width, D] -> [rows, heads, width, D]."""
    blocks: Tensor = piece[0].unflatten(1, (rows, width))
    return blocks.transpose(0, 1)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(ATTENTION_NAME, attend)
AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
