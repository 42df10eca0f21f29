"""Torch's thread-local state: read in one thread, set in another; and the private names of torch that this needs.

tests/house pins every private name, so a new torch that moves one fails there, by its name.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, overrides
from torch.utils import _python_dispatch as dispatch

from auxnas_layers._torch.graphs import graph_trees, sharing
from auxnas_layers._torch.streams import Streams, device_types

_c: Any = torch._C
_autograd: Any = torch._C._autograd
_functorch: Any = torch._C._functorch
_overrides: Any = overrides


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for inference tensors, where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def numbers(tensor: Tensor) -> list[float]:
    """The values of a vector as floats, by one copy from its device."""
    host = tensor.detach().to("cpu", copy=True)
    return [value.item() for value in host.unbind()] if is_transforming() else host.tolist()


def is_tracing() -> bool:
    """Whether torch.jit.trace or torch.export records this call.

    Not while dynamo does, which torch 2.8 takes for an export: it then leaves the forward out, or torch.export refuses.
    """
    exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    return exporting or _c._get_tracing_state() is not None


def is_transforming() -> bool:
    """Whether a transform of torch.func is active."""
    return bool(_functorch.get_dynamic_layer_stack_depth())


def saved_tensor_hooks() -> tuple[Any, Any] | None:
    """The innermost active pair of saved-tensor hooks."""
    hooks: tuple[Any, Any] | None = _autograd._top_saved_tensors_default_hooks(True)
    return hooks


def saved_tensor_hooks_within(outer: tuple[Any, Any] | None) -> list[tuple[Any, Any]]:
    """All active pairs of saved-tensor hooks inside `outer`, innermost first."""
    found: list[tuple[Any, Any]] = []
    while (hooks := saved_tensor_hooks()) is not None and hooks != outer:
        found.append(hooks)
        _autograd._pop_saved_tensors_default_hooks()
    for pack, unpack in reversed(found):
        _autograd._push_saved_tensors_default_hooks(pack, unpack)
    return found


def checkpoint_frame(pack: Any) -> Any | None:
    """The activation-checkpoint region that made a pack hook; None if the hook or the region is of another kind.

    Backward calls the region's `recompute_fn`.
    """
    names = getattr(getattr(pack, "__code__", None), "co_freevars", ())  # a user's hook may be no function
    cells = dict(zip(names, getattr(pack, "__closure__", None) or (), strict=True))
    return cells["frame"].cell_contents if "frame" in cells else None


def dispatch_modes() -> list[Any]:
    """The active dispatch modes, outermost first."""
    modes: list[Any] = dispatch._get_current_dispatch_mode_stack()
    return modes


class CallState:
    """The thread-local state of torch at a call: gradients, autocast, modes, hooks, torch.func, streams, graphs."""

    def __init__(self) -> None:
        self.grad, self.inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self.autocast = [_autocast_state(device) for device in device_types()]
        self.function_modes = _overrides._get_current_function_mode_stack()
        self.dispatch_modes = dispatch_modes()
        self.saved_hooks = saved_tensor_hooks()
        self.transforms = _transforms()
        self.streams = Streams()
        self.graphs = graph_trees()
        self.threads = torch.get_num_threads()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Set this state in a thread whose own state is that of a new thread."""
        with ExitStack() as stack:
            if torch.get_num_threads() != self.threads:  # OpenMP keeps its own number in each thread
                torch.set_num_threads(self.threads)
            self.streams.set_()
            stack.enter_context(sharing(self.graphs))
            for layer in reversed(self.transforms):
                _functorch.push_dynamic_layer_stack(layer)
                stack.callback(_functorch.pop_dynamic_layer_stack)
            if self.inference:
                stack.enter_context(torch.inference_mode())
            stack.enter_context(self.restored())
            for mode in self.function_modes:
                _overrides._push_mode(mode)
                stack.callback(_overrides._pop_mode)
            for mode in self.dispatch_modes:
                dispatch._push_mode(mode)
                stack.callback(dispatch._pop_mode, getattr(mode, "_mode_key", None))
            yield

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Set the call's grad mode, autocast and saved-tensor hooks, whatever a network has set around its tap."""
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


ThreadState = tuple[Any, ...]


def thread_state() -> ThreadState:
    """What a network may change for good in its thread."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        [_autocast_state(device) for device in device_types()],
        _overrides._get_current_function_mode_stack(),
        dispatch_modes(),
        saved_tensor_hooks(),
        _autograd._saved_tensors_hooks_is_enabled(),
        is_transforming(),
        _c._is_multithreading_enabled(),
        _c._is_fwd_grad_enabled(),
        _c._get_torch_function_state(),
    )


def _share(tensor: Tensor) -> Tensor:
    return tensor.detach()  # the tensor itself may be the output of the node that saves it, and would never be freed


def _autocast_state(device: str) -> dict[str, Any]:
    return {
        "device_type": device,
        "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }


def _transforms() -> list[Any]:
    """The active transforms of torch.func, innermost first; another thread without them is wrong in silence."""
    layers = []
    while is_transforming():
        layers.append(_functorch.pop_dynamic_layer_stack())
    for layer in reversed(layers):
        _functorch.push_dynamic_layer_stack(layer)
    return layers
