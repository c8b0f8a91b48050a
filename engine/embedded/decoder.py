"""The forward pass: one flat batch of tokens through every layer, keys and values in slabs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from engine.embedded.kv import KVPool
from engine.embedded.lora import Adapter
from engine.embedded.plan import PromptBatch, SlabStep, StepPlan
from engine.embedded.rope import inverse_frequencies
from engine.embedded.weights import LayerWeights, load_weights
from engine.errors import ConfigError
from engine.modeldir.files import read_config
from engine.modeldir.shape import DecoderShape, check_architecture


def _check_served(model: Path) -> None:
    """Refuses every decoder that is not computed here: served are full attention, SiLU and plain weights.

    Raises ConfigError that names what is not served."""
    check_architecture(model, "served here")
    config = read_config(model)
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise ConfigError(f"{model}: activation {activation} cannot be served here; use a SiLU model")
    if config.get("quantization_config") is not None:
        raise ConfigError(f"{model}: quantized weights cannot be served here; use a model in plain weights")


class Decoder:
    """A decoder with its adapters; not thread-safe, owned by the model thread."""

    def __init__(self, model: Path) -> None:
        _check_served(model)
        self.shape = DecoderShape.read(model)
        frequencies = inverse_frequencies(model, read_config(model), self.shape.head_dim)
        self.weights = load_weights(model, self.shape)
        self._frequencies = torch.tensor(frequencies, dtype=torch.float32)
        self._scale = self.shape.head_dim**-0.5

    def new_pool(self, budget: int) -> KVPool:
        """An empty pool for this many tokens of this decoder."""
        return KVPool(self.shape, budget)

    def install(self, load_id: int, adapter: Adapter) -> None:
        """Serve an adapter under a load id that was never used before."""
        for layer, changes in zip(self.weights.layers, adapter.changes, strict=True):
            projections = layer.projections()
            for name, change in changes.items():
                projections[name].install(load_id, change)

    def remove(self, load_id: int) -> None:
        """Forget an adapter."""
        for layer in self.weights.layers:
            for projection in layer.projections().values():
                projection.remove(load_id)

    def forward(self, plan: StepPlan, wanted: Tensor) -> Tensor:
        """Run a step, write its keys and values, return normed hidden states `[len(wanted), hidden]` of flat tokens."""
        x_N = self.weights.embedding.index_select(0, plan.tokens)
        angles = plan.positions[:, None] * self._frequencies
        cosine, sine = angles.cos(), angles.sin()
        rope = torch.cat((cosine, cosine), 1)[:, None], torch.cat((-sine, sine), 1)[:, None]
        eps, hidden = self.shape.norm_eps, (self.shape.hidden,)
        for index, layer in enumerate(self.weights.layers):
            h_N = rms_norm(x_N, hidden, layer.input_norm, eps)
            h_N = self._attention(index, layer, layer.qkv(h_N, plan.segments), plan, rope)
            x_N = x_N + layer.o(h_N, plan.segments)
            h_N = rms_norm(x_N, hidden, layer.post_norm, eps)
            gate_N, up_N = layer.gate_up(h_N, plan.segments).split(self.shape.intermediate, 1)
            x_N = x_N.add_(layer.down(silu(gate_N).mul_(up_N), plan.segments))
        return rms_norm(x_N.index_select(0, wanted), hidden, self.weights.norm, eps)

    def logits(self, hidden_S: Tensor) -> Tensor:
        """`[S, vocabulary]` from normed hidden states."""
        return linear(hidden_S, self.weights.head)

    def _attention(
        self, index: int, layer: LayerWeights, qkv_N: Tensor, plan: StepPlan, rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        shape = self.shape
        roped, query_width = shape.heads + shape.kv_heads, shape.query
        qk_N = qkv_N[:, : roped * shape.head_dim].view(-1, roped, shape.head_dim)
        source_N = qk_N
        if layer.query_key_norm is not None:
            # On narrow heads this is twice as fast as torch's rms_norm.
            norm_N = torch.linalg.vector_norm(qk_N, dim=-1, keepdim=True)
            scale_N = norm_N.square_().div_(shape.head_dim).add_(shape.norm_eps).rsqrt_()
            source_N = (qk_N * scale_N).mul_(layer.query_key_norm)
        turned_N = torch.cat((source_N[..., shape.head_dim // 2 :], source_N[..., : shape.head_dim // 2]), -1)
        torch.addcmul(source_N * rope[0], turned_N, rope[1], out=qk_N)
        q_N, kv_N = qkv_N[:, :query_width], qkv_N[:, query_width:]
        out_N = torch.empty_like(q_N)
        for step in plan.slabs:
            cells = step.slab.kv[index]
            written = kv_N.index_select(0, step.written).view(-1, shape.head_dim)
            cells.view(-1, shape.head_dim).index_copy_(0, step.destination, written)
            for batch in step.prompts:
                out_N.index_copy_(0, batch.scatter, self._attend_prompt(cells, step.width, batch, q_N))
            out_N.index_copy_(0, step.last, self._attend_last(cells, step, q_N))
        return out_N

    def _attend_last(self, cells: Tensor, step: SlabStep, q_N: Tensor) -> Tensor:
        """Attention of every row's last token over the slab's view, `[R, heads * head_dim]`."""
        shape, rows = self.shape, step.last.shape[0]
        keys, values = cells.view(2, -1, step.slab.capacity, shape.head_dim)[:, : rows * shape.kv_heads, : step.width]
        # The query heads that share a key head are the rows of one small matrix.
        q = q_N.index_select(0, step.last).view(rows * shape.kv_heads, -1, shape.head_dim)
        if step.bias is None:
            scores = torch.bmm(q, keys.transpose(1, 2)).mul_(self._scale)
        else:
            scores = torch.baddbmm(step.bias, q, keys.transpose(1, 2), alpha=self._scale)
        return torch.bmm(scores.softmax(-1), values).view(rows, -1)

    def _attend_prompt(self, cells: Tensor, width: int, batch: PromptBatch, q_N: Tensor) -> Tensor:
        """Attention of prompt tokens over gathered rows, `[valid, heads * head_dim]`."""
        shape, rows = self.shape, len(batch.rows)
        # Stacking views copies whole runs; index_select on this strided tensor was 20 times slower.
        keys, values = torch.stack([cells[:, row, :, :width] for row in batch.rows], 1)
        q = q_N.index_select(0, batch.gather).view(rows, -1, shape.heads, shape.head_dim).transpose(1, 2)
        out = scaled_dot_product_attention(q, keys, values, attn_mask=batch.mask, enable_gqa=True)
        return out.transpose(1, 2).reshape(-1, shape.heads * shape.head_dim).index_select(0, batch.valid)
