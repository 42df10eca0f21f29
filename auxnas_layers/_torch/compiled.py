"""Keeping torch.compile out of code that runs hooks and threads, and out of comparisons."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_UNCOMPILED: dict[Callable[..., Any], Callable[..., Any]] = {}


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile out of a function and of everything that it calls.

    Without torch._dynamo nobody compiles anything, and importing it takes longer than importing torch. So it is only
    asked for once somebody else has imported it.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    if function not in _UNCOMPILED:
        _UNCOMPILED[function] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return _UNCOMPILED[function]


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules as they were written: copies of them, which they are compared with, are not compiled."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
