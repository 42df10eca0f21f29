"""The rooms of the package import only from rooms above them, nothing is done at import, all names are documented."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, loss_of
from zoo import Cnn

import auxnas_layers
from auxnas_layers import AuxNASWrapper

PACKAGE = ROOT / "auxnas_layers"
PACKAGES = {
    "_torch": ["hooks", "operands", "compiled", "graphs", "streams", "state"],
    "features": [
        "layouts",
        "align",
        "outputs",
        "taps",
        "inputs",
        "attributes",
        "undisturbed",
        "dry_run",
        "ignored",
        "flops",
        "parts",
        "choice",
        "folding",
        "listing",
        "suggest",
    ],
    "fusion": ["sizing", "projection", "base", "cross_task", "nddr", "cross_stitch", "listener", "bank"],
    "search": ["edges", "spaces", "host_copy", "gates", "penalties", "searches", "gate_bank", "watch"],
    "_engine": [
        *[
            "checkpoint",
            "taps",
            "workers",
            "deadlock",
            "lockstep",
            "run",
            "exchange",
            "survey",
            "groups",
            "saving",
            "trainer",
        ],
        "joint",
    ],
    "export": ["ties", "copying", "compare", "cost", "report", "primary", "multitask"],
}
PLOT = ["drawing", "gates", "edges", "networks", "cost"]
ROOMS = [
    "errors",
    "tables",
    *(name for package, rooms in PACKAGES.items() for name in [*(f"{package}.{room}" for room in rooms), package]),
    *["searched", "arguments", "wrapper", "held_out", "alignment", "verdict", "stopping", "callbacks"],
    *["labels", "sampling", "surgery"],
    *[*(f"plot.{room}" for room in PLOT), "plot", ""],
]


def room(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {name.removeprefix("auxnas_layers").lstrip(".") for name in names if name.startswith("auxnas_layers")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=room)
def test_each_room_imports_only_from_rooms_above_it(path):
    above = ROOMS[: ROOMS.index(room(path))]
    assert imports(path) <= set(above)
    if room(path).split(".")[0] != "plot":
        assert "matplotlib" not in path.read_text()
    if not room(path).startswith("_torch"):
        assert not re.search(r"torch\._|[^_\w]_(functorch|autograd|dynamo)\b", path.read_text()), "private torch names"


NEW_PROCESS = """
import random, sys, types

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "auxnas_layers":
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
sys.modules["auxnas_layers"] = None
import torch
torch.set_num_threads(1)
zoo = sys.modules["zoo"] = types.ModuleType("zoo")

class Cnn(torch.nn.Module):
    def forward(self, x):
        return self.head(self.layer2(self.layer1(x)))

zoo.Cnn = Cnn
net, x, y = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(net(x), y)

del sys.meta_path[0], sys.modules["auxnas_layers"]
before = torch.get_rng_state(), random.getstate()
import auxnas_layers
assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
print(*sys.modules)
import auxnas_layers.plot
print(*sys.modules)
"""


def test_an_exported_network_loads_where_the_library_cannot_be_imported_and_importing_it_does_no_work(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], example_inputs=x)
    loss_of(wrapper(x).aux).backward()
    wrapper.close_aux_to_primary_()
    net = wrapper.eval().export_primary()
    torch.save((net, x, net(x)), tmp_path / "net.pt")
    command = [sys.executable, "-W", "error", "-c", NEW_PROCESS, str(tmp_path / "net.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded, with_plot = (line.split() for line in done.stdout.splitlines())
    slow = {"matplotlib", "torchvision", "timm", "torch._dynamo", "torch.utils.flop_counter", "hypothesis"}
    assert not slow & set(loaded)
    assert "matplotlib" in with_plot  # the check can fail


def test_private_names_of_torch_that_the_engine_uses_are_what_it_takes_them_for():
    """Where torch moves one of them, this fails by its name."""
    from torch import overrides
    from torch.utils import _python_dispatch, checkpoint

    for name in ("_get_current_function_mode_stack", "_push_mode", "_pop_mode"):
        assert callable(getattr(overrides, name)), name
    for name in ("_get_current_dispatch_mode_stack", "_push_mode", "_pop_mode"):
        assert callable(getattr(_python_dispatch, name)), name
    for name in ("get_dynamic_layer_stack_depth", "pop_dynamic_layer_stack", "push_dynamic_layer_stack"):
        assert callable(getattr(torch._C._functorch, name)), name
    for name in ("_is_multithreading_enabled", "_is_fwd_grad_enabled", "_get_torch_function_state"):
        assert callable(getattr(torch._C, name)), name
    assert torch._C._autograd._saved_tensors_hooks_is_enabled()
    assert torch._C._get_tracing_state() is None
    top = torch._C._autograd._top_saved_tensors_default_hooks
    assert top(True) is None
    seen = []

    def region(x):
        pack, _ = top(True)
        cells = dict(zip(pack.__code__.co_freevars, pack.__closure__, strict=True))
        seen.append((pack.__module__, callable(cells["frame"].cell_contents.recompute_fn)))
        return x.sin()

    checkpoint.checkpoint(region, torch.ones(1, requires_grad=True), use_reentrant=False)
    assert seen == [(checkpoint.__name__, True)]
    for name in ("_pop_saved_tensors_default_hooks", "_push_saved_tensors_default_hooks"):
        assert callable(getattr(torch._C._autograd, name)), name
    assert checkpoint.CheckpointFunction in torch.autograd.Function.__subclasses__()


def test_private_names_of_recorded_cuda_graphs_are_what_the_engine_takes_them_for():
    from torch._inductor import cudagraph_trees as trees

    kept = trees.get_obj(trees.local, "tree_manager_containers")
    trees.get_obj(trees.local, "tree_manager_locks")
    assert trees.local.tree_manager_containers is kept and torch._C._is_key_in_tls("tree_manager_containers")
    manager, trees.MarkStepBox.mark_step_counter = object.__new__(trees.CUDAGraphTreeManager), 7
    try:
        manager.running_forwards_with_pending_backwards = True
        manager.update_generation()
        assert manager.current_gen == 7 and not manager.can_start_new_generation()
        torch.compiler.cudagraph_mark_step_begin()
        assert trees.MarkStepBox.mark_step_counter == 6 and manager.can_start_new_generation()
        trees.MarkStepBox.mark_step_counter = 0
        assert not manager.can_start_new_generation()
        manager.running_forwards_with_pending_backwards = False
        assert manager.can_start_new_generation()
    finally:
        trees.MarkStepBox.mark_step_counter = 0
    assert trees.TreeManagerContainer(0).tree_manager is None
    if hasattr(torch._C, "_remove_obj_from_tls"):
        counted = {}
        before = sys.getrefcount(counted)
        torch._C._stash_obj_in_tls("counted", counted)
        same = torch._C._get_obj_in_tls("counted") is counted
        torch._C._remove_obj_from_tls("counted")
        after = sys.getrefcount(counted)
        assert same and after == before and not torch._C._is_key_in_tls("counted")


def test_every_public_name_is_exported_and_documented():
    for name in auxnas_layers.__all__:
        assert getattr(auxnas_layers, name).__doc__, name
    reference = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    assert not [name for name in auxnas_layers.__all__ if not re.search(rf"[`.]{name}\b", reference)]
    assert (PACKAGE / "py.typed").exists()
