"""CUDA graphs: those that torch.compile records, whose state torch keeps for each thread, and those of the user."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from typing import Any

import torch

_c: Any = torch._C
_cuda: Any = torch.cuda
_OBJECTS = ("tree_manager_containers", "tree_manager_locks")
_COMPILERS = ("torch._inductor.compile_fx", "torch._dynamo.backends.cudagraphs")
"""What torch.compile imports when it is called, and not yet the module of recorded graphs."""
_STEPS = count(-(2**60))
"""Numbers of steps; those that torch.compiler.cudagraph_mark_step_begin counts go down from -1."""


def is_capturing() -> bool:
    """Whether the current stream's operations are captured as a CUDA graph, so that no number can be read."""
    return bool(_cuda.is_initialized() and _cuda.is_current_stream_capturing())


def graph_trees() -> dict[str, Any]:
    """The recorded graphs of this thread and their memory, for another thread; empty where there can be none.

    Without them an auxiliary would record its forward in its worker's memory, apart from its backward pass; torch 2.8
    refuses to record in such a thread at all.
    """
    trees = _trees()
    try:
        return {} if trees is None else {name: trees.get_obj(trees.local, name) for name in _OBJECTS}
    except AssertionError:  # torch 2.8, in a thread of the user's, where it records no graphs
        return {}


@contextmanager
def sharing(found: Mapping[str, Any]) -> Iterator[None]:
    """Record and replay graphs in this thread as in that of `graph_trees`."""
    trees = _trees() if found else None
    if trees is None:
        yield
        return
    # Torch hands these names on to the threads of a backward pass inside this one. Torch 2.8 cannot take them away
    # again, and would release each object once too often.
    can_hand_on = hasattr(_c, "_remove_obj_from_tls")
    for name, value in found.items():
        setattr(trees.local, name, value)
        if can_hand_on:
            _c._stash_obj_in_tls(name, value)
    try:
        yield
    finally:
        for name in found:
            delattr(trees.local, name)
            if can_hand_on:
                _c._remove_obj_from_tls(name)


@contextmanager
def one_step() -> Iterator[None]:
    """Let compiled calls without gradients keep what others inside this step have returned.

    Each call of compiled code is a step of its own to torch, which then frees what the graphs of earlier steps have
    returned. With gradients it waits for the backward pass, and with steps that the user marks for the next mark.
    """
    trees = None if torch.is_grad_enabled() else _trees()
    if trees is None or trees.MarkStepBox.mark_step_counter or _waits_for_backward():
        yield
        return
    trees.MarkStepBox.mark_step_counter = next(_STEPS)
    try:
        yield
    finally:
        trees.MarkStepBox.mark_step_counter = 0


def _waits_for_backward() -> bool:
    containers = graph_trees().get(_OBJECTS[0], {}).values()
    managers = [container.tree_manager for container in containers]
    return any(manager is not None and manager.running_forwards_with_pending_backwards for manager in managers)


def _trees() -> Any | None:
    """Torch's module of recorded graphs; None unless a GPU is in use and somebody has asked for a compiler of graphs.

    Whichever thread imports it first gets its objects, so that must not be left to an auxiliary's worker.
    """
    if not _cuda.is_initialized() or not any(name in sys.modules for name in _COMPILERS):
        return None
    return import_module("torch._inductor.cudagraph_trees")
