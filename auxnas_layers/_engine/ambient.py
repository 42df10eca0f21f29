"""Torch's thread-local state at the wrapper's call: copied into worker threads, and restored around fusions.

With `checkpoint.py`, and `run.py` for one, the only place of private names of torch; tests/test_house.py pins each.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, overrides
from torch.utils import _python_dispatch as dispatch

_autograd: Any = torch._C._autograd
_functorch: Any = torch._C._functorch
_overrides: Any = overrides
_cuda: Any = torch.cuda
_DEVICES = ("cuda", "xpu", "mps")


_UNCOMPILED: dict[Callable[..., Any], Callable[..., Any]] = {}


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile out of a function and all that it calls, which run hooks and threads.

    Nobody compiles anything before torch._dynamo is imported; importing it takes longer than importing torch.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    if function not in _UNCOMPILED:
        _UNCOMPILED[function] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return _UNCOMPILED[function]


@contextmanager
def eager() -> Iterator[None]:
    """Run what is compiled as it was written, for comparisons with copies, which nn.Module makes uncompiled."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def saved_tensor_hooks() -> tuple[Any, Any] | None:
    """The innermost pair of saved-tensor hooks in force."""
    hooks: tuple[Any, Any] | None = _autograd._top_saved_tensors_default_hooks(True)
    return hooks


def saved_tensor_hooks_within(outer: tuple[Any, Any] | None) -> list[tuple[Any, Any]]:
    """All pairs inside another, innermost first."""
    found: list[tuple[Any, Any]] = []
    while (hooks := saved_tensor_hooks()) is not None and hooks != outer:
        found.append(hooks)
        _autograd._pop_saved_tensors_default_hooks()
    for pack, unpack in reversed(found):
        _autograd._push_saved_tensors_default_hooks(pack, unpack)
    return found


def dispatch_modes() -> list[Any]:
    """The stack of dispatch modes in force."""
    modes: list[Any] = dispatch._get_current_dispatch_mode_stack()
    return modes


def is_transforming() -> bool:
    """Whether a transform of torch.func is at work."""
    return bool(_functorch.get_dynamic_layer_stack_depth())


class Ambient:
    """The state of grad mode, autocast, modes, hooks, functorch and CUDA in the calling thread."""

    def __init__(self) -> None:
        self.grad, self.inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        devices = ["cpu", *(name for name in _DEVICES if getattr(torch, name).is_available())]
        self.autocast = [_autocast_state(device) for device in devices]
        self.function_modes = _overrides._get_current_function_mode_stack()
        self.dispatch_modes = dispatch_modes()
        self.saved_hooks = saved_tensor_hooks()
        self.functorch = _functorch_layers()
        self.streams = _cuda_streams()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Give a fresh thread the state of the calling one."""
        with ExitStack() as stack:
            if self.streams:
                for stream in self.streams[1]:
                    _cuda.set_stream(stream)
                _cuda.set_device(self.streams[0])  # last, since set_stream moves the device
            for layer in reversed(self.functorch):
                _functorch.push_dynamic_layer_stack(layer)
                stack.callback(_functorch.pop_dynamic_layer_stack)
            if self.inference:
                stack.enter_context(torch.inference_mode())
            stack.enter_context(self.fusing())
            for mode in self.function_modes:
                _overrides._push_mode(mode)
                stack.callback(_overrides._pop_mode)
            for mode in self.dispatch_modes:
                dispatch._push_mode(mode)
                stack.callback(dispatch._pop_mode, getattr(mode, "_mode_key", None))
            yield

    @contextmanager
    def fusing(self) -> Iterator[None]:
        """The call's grad mode, autocast and saved-tensor hooks, whatever a network has set around its tap."""
        with ExitStack() as stack:
            if torch.is_grad_enabled() != self.grad:
                stack.enter_context(torch.set_grad_enabled(self.grad))
            for state in self.autocast:
                if _autocast_state(state["device_type"]) != state:
                    stack.enter_context(torch.autocast(**state))
            if saved_tensor_hooks() != self.saved_hooks:
                pack, unpack = self.saved_hooks or (_share, _share)
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, unpack))
            yield


def _share(tensor: Tensor) -> Tensor:
    return tensor.detach()  # itself it may be the output of the node that saves it, and would never be freed


def _autocast_state(device: str) -> dict[str, Any]:
    return {
        "device_type": device,
        "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }


def _functorch_layers() -> list[Any]:
    """The stack of torch.func transforms, innermost first; without it they are silently wrong in another thread."""
    layers = []
    while is_transforming():
        layers.append(_functorch.pop_dynamic_layer_stack())
    for layer in reversed(layers):
        _functorch.push_dynamic_layer_stack(layer)
    return layers


def _cuda_streams() -> tuple[int, list[Any]] | None:
    if not (_cuda.is_available() and _cuda.is_initialized()):
        return None
    return _cuda.current_device(), [_cuda.current_stream(i) for i in range(_cuda.device_count())]
