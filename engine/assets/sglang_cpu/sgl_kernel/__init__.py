"""Stand-in for the CUDA-only `sgl_kernel`: lets SGLang import and serve without a GPU, in SGLang's environment alone.

Every operator can be imported and none can be called: what SGLang's torch-native path does not need stays unnoticed,
anything else fails by name. That `torch.ops.sgl_kernel` stays empty makes SGLang choose that path. Pinned host memory
does not exist without an accelerator, so requests for it are dropped. Written for SGLang 0.5.23.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

__version__ = "0.4.10+cpu"

if torch.cuda.is_available():
    raise ImportError("this stand-in is for machines without a GPU; here SGLang needs the real sgl_kernel")

_CREATORS = (
    *("tensor", "empty", "zeros", "ones", "full", "arange", "rand", "randn"),
    *("empty_like", "zeros_like", "ones_like", "full_like", "empty_strided"),
)


def __getattr__(name: str) -> Callable[..., None]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args: object, **_kwargs: object) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} does not exist without a GPU")

    missing.__name__ = name
    return missing


def _unpinned(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def wrapper(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:  # noqa: ARG001 - dropped here
        return create(*args, **kwargs)

    return wrapper


vars(torch).update({name: _unpinned(vars(torch)[name]) for name in _CREATORS})
setattr(torch.Tensor, "pin_memory", lambda self, *_args, **_kwargs: self)  # noqa: B010 - as above, and mypy minds
