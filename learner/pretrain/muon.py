"""Muon in float32 with matrices of one shape orthogonalised together.

`torch.optim.Muon` iterates in bfloat16, which a CPU without bfloat16 units emulates: measured at 0.75 s a step for the
tiny model, against 0.06 s here and 0.33 s for forward and backward together.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (Keller Jordan, 2024; the values of `torch.optim.Muon`)."""


def orthogonalise(stack_NIJ: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Roughly U Vᵀ of each of N matrices [I, J]."""
    a, b, c = COEFFICIENTS
    tall = stack_NIJ.shape[1] > stack_NIJ.shape[2]
    x: torch.Tensor = stack_NIJ.mT if tall else stack_NIJ
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, then an orthogonal update scaled by sqrt(max(1, rows / columns)), as `torch.optim.Muon`."""

    def __init__(self, params: Iterable[torch.nn.Parameter], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        del closure
        for settings in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for matrix in settings["params"]:
                shapes.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in shapes.items():
                self._update(matrices, settings["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5, settings["momentum"])

    def _update(self, matrices: list[torch.nn.Parameter], lr: float, momentum: float) -> None:
        directions = []
        for matrix in matrices:
            gradient = matrix.grad
            if gradient is None:
                raise ValueError("a matrix without gradient")
            average = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
            average.lerp_(gradient, 1 - momentum)
            directions.append(gradient.lerp(average, momentum))
        for matrix, update in zip(matrices, orthogonalise(torch.stack(directions)), strict=True):
            matrix.add_(update, alpha=-lr)
