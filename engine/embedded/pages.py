"""Memory for keys and values: a large block lies in pages of its own, which go back to the system with its tensor.

Between blocks as large as those the heap, which keeps what is freed, would hold as much again in holes.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

LARGE_BYTES = 4 << 20
"""Of one row over all layers, or of one run in the prefix cache; a small model has none that large."""


def zeros(shape: tuple[int, ...], *, large: bool) -> Tensor:
    """A float32 tensor of zeros."""
    size = math.prod(shape) * 4
    if not large or not size:
        return torch.zeros(shape)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.float32).view(shape)


def copy_of(values: Tensor) -> Tensor:
    """A copy with memory of its own, whatever it is a view of."""
    return zeros(tuple(values.shape), large=values.numel() * 4 >= LARGE_BYTES).copy_(values)
