"""A peft LoRA linear as one autograd node.

peft's own forward builds `base(x) + B(A(dropout(x))) * scaling` from separate operations: each scaling, addition and
gradient accumulation is a pass over memory, a third of a step at small sizes. Here the low-rank product is accumulated
into the base product by the matrix multiplication itself. Modules, names, parameters and scaling stay peft's; only the
arithmetic of a forward call is replaced, and tests hold it against peft's.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

ADAPTER = "default"
"""peft's name of the only adapter."""


class _LoraLinear(torch.autograd.Function):
    """``y = x W^T + bias + s (x A^T) B^T`` for x [T, in]; gradients for x, A and B (W and bias are frozen)."""

    @staticmethod
    def forward(ctx: Any, x_T: Tensor, base: nn.Linear, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        low_T = x_T @ a.T
        y_T = torch.nn.functional.linear(x_T, base.weight, base.bias)
        y_T.addmm_(low_T, b.T, alpha=scaling)
        ctx.save_for_backward(x_T, low_T, base.weight, a, b)
        ctx.scaling = scaling
        return y_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        x_T, low_T, weight, a, b = ctx.saved_tensors
        grad_T = grads[0]
        grad_low_T = grad_T @ b
        grad_a = (grad_low_T.T @ x_T).mul_(ctx.scaling)
        grad_b = (grad_T.T @ low_T).mul_(ctx.scaling)
        grad_x_T = None
        if ctx.needs_input_grad[0]:
            grad_x_T = (grad_T @ weight).addmm_(grad_low_T, a, alpha=ctx.scaling)
        return grad_x_T, None, grad_a, grad_b, None


def _forward(self: PeftLinear, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stands in for PeftLinear.forward: x [..., in] -> [..., out]."""
    base = self.get_base_layer()
    if self.disable_adapters:
        result: Tensor = base(x)
        return result
    # What servers compute with is the adapter in the base's dtype; the gradients arrive in the masters', float32.
    a, b = self.lora_A[ADAPTER].weight.to(x.dtype), self.lora_B[ADAPTER].weight.to(x.dtype)
    y_T: Tensor = _LoraLinear.apply(x.reshape(-1, x.shape[-1]), base, a, b, self.scaling[ADAPTER])
    return y_T.view(*x.shape[:-1], -1)


def fuse(model: nn.Module) -> None:
    """Replace the forward of every peft LoRA linear in `model` (no dropout: refused earlier)."""
    for module in model.modules():
        if isinstance(module, PeftLinear):
            module.forward = MethodType(_forward, module)
