"""CUDA graphs that torch.compile records: one state for all threads of a forward, one step for all its calls.

Without a GPU: the decisions are those of torch's own manager, and only the recording is left out.
"""

import subprocess
import sys
import threading

import pytest
import torch
from helpers import ROOT
from mlps import Mlp, X, wrap

from auxnas_layers._engine.workers import pool_of
from auxnas_layers._torch import graphs

NAMES = ("tree_manager_containers", "tree_manager_locks")


@pytest.fixture
def trees(monkeypatch):
    """Torch's module of recorded graphs, as if a GPU were in use."""
    from torch._inductor import cudagraph_trees

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(graphs, "_COMPILERS", ("torch",))
    monkeypatch.setattr(cudagraph_trees, "local", threading.local())
    for name in NAMES:
        setattr(cudagraph_trees.local, name, {})
    return cudagraph_trees


class Looks(Mlp):
    """Asks torch for the recorded graphs of its thread, as compiled code does."""

    def __init__(self, trees, found):
        super().__init__()
        self.trees, self.found = [trees], found

    def forward(self, x):
        (trees,) = self.trees
        self.found.append((threading.current_thread(), *(trees.get_obj(trees.local, name) for name in NAMES)))
        return super().forward(x)


def test_a_worker_finds_the_recorded_graphs_of_the_call_and_keeps_none(trees):
    found = []
    wrapper = wrap(aux=Looks(trees, found))
    wrapper(X)
    (worker, *objects) = found[-1]
    assert worker is not threading.current_thread()
    assert all(one is getattr(trees.local, name) for one, name in zip(objects, NAMES, strict=True))
    left = []
    (idle,) = pool_of(wrapper)._idle
    idle.run(lambda _: left.extend(hasattr(trees.local, name) or torch._C._is_key_in_tls(name) for name in NAMES))
    idle.stop()
    idle.thread.join(10)
    assert left == [False, False]


@pytest.mark.skipif(not hasattr(torch._C, "_remove_obj_from_tls"), reason="this torch cannot take objects away again")
def test_a_backward_pass_inside_an_auxiliary_gets_the_recorded_graphs_too(trees):
    found = []

    class Differentiates(Mlp):
        def forward(self, x):
            found.extend(torch._C._get_obj_in_tls(name) for name in NAMES)
            return super().forward(x)

    wrap(aux=Differentiates())(X)
    assert found[-2] is trees.local.tree_manager_containers and found[-1] is trees.local.tree_manager_locks


IMPORTS = """
import sys, torch
sys.path[:0] = {path!r}
from mlps import X, wrap
trees, wrapper = "torch._inductor.cudagraph_trees", wrap()
torch.cuda.is_initialized = lambda: True
torch.cuda.is_current_stream_capturing = lambda: False
wrapper(X)
assert trees not in sys.modules
torch.cuda.is_initialized = lambda: False
torch.compile(torch.nn.Linear(2, 2), mode={mode!r}, backend={backend!r})
wrapper(X)
assert trees not in sys.modules
torch.cuda.is_initialized = lambda: True
wrapper(X)
assert trees in sys.modules and torch._C._is_key_in_tls("tree_manager_containers")
"""


@pytest.mark.parametrize("options", [{"mode": "reduce-overhead", "backend": "inductor"}, {"backend": "cudagraphs"}])
def test_the_calls_thread_imports_what_a_compiler_of_graphs_will_need_and_nothing_without_one(options):
    code = IMPORTS.format(path=sys.path, **{"mode": None, **options})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


class Compiled(Mlp):
    """Begins a step before each layer, as a network of compiled blocks does, where torch's manager would let it."""

    def __init__(self, manager, begun):
        super().__init__()
        self.manager, self.begun = [manager], begun

    def forward(self, x):
        from torch._dynamo.mutation_guard import GenerationTracker

        (manager,) = self.manager
        for layer in (self.a, self.b, self.head):
            GenerationTracker.generation += 1
            self.begun.append(manager.can_start_new_generation())
            manager.update_generation()
            x = layer(x)
        return x


@pytest.fixture
def manager(trees):
    manager = trees.CUDAGraphTreeManager.__new__(trees.CUDAGraphTreeManager)
    manager.running_forwards_with_pending_backwards, manager.current_gen = False, None
    container = trees.TreeManagerContainer(0)
    container.tree_manager = manager
    trees.local.tree_manager_containers[0] = container
    return manager


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_forward_without_gradients_is_one_step_of_recorded_graphs(lockstep, manager):
    begun = []
    wrapper = wrap(primary=Compiled(manager, begun), aux=Compiled(manager, begun)).eval()
    if not lockstep:
        wrapper.close_aux_to_primary_()
    for _ in range(2):
        begun.clear()
        with torch.no_grad():
            wrapper(X)
        assert begun == [True, False, False, False, False, False]
    begun.clear()
    with torch.no_grad():
        wrapper.primary_net(X)
    assert begun == [True, True, True]  # torch's own rule, for which that network is three calls


def test_a_forward_frees_nothing_that_a_backward_pass_still_needs_nor_between_the_users_marks(trees, manager):
    begun = []
    wrapper = wrap(primary=Compiled(manager, begun), aux=Compiled(manager, begun))
    manager.running_forwards_with_pending_backwards = True
    begun.clear()
    with torch.no_grad():
        wrapper(X)
    assert not any(begun)
    manager.running_forwards_with_pending_backwards = False
    try:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            wrapper(X)
            wrapper(X)
        assert begun[6:] == [True] + 11 * [False] and trees.MarkStepBox.mark_step_counter < 0
    finally:
        trees.MarkStepBox.mark_step_counter = 0


def test_capture_is_looked_for_only_where_cuda_is_in_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not graphs.is_capturing()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert graphs.is_capturing()
