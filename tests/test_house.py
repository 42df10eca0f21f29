"""The house: rooms import only from rooms above them, nothing is done at import, and documents tell the truth."""

import ast
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import loss_of
from zoo import CASES, Cnn

import auxnas_layers
from auxnas_layers import AuxNASWrapper

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "auxnas_layers"
ROOMS = [
    "errors",
    "layouts",
    "taps",
    "inputs",
    "search_space",
    "gates",
    "fusion",
    "architecture",
    "search",
    "listener",
    "_engine.ambient",
    "_engine.hooks",
    "_engine.checkpoint",
    "_engine.visits",
    "_engine.branch",
    "_engine.sequential",
    "_engine.lockstep",
    "_engine.run",
    "_engine",
    "survey",
    "suggest",
    "exchange",
    "arguments",
    "joint",
    "alignment",
    "cost",
    "export",
    "multitask",
    "plot",
    "wrapper",
    "",
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
    if room(path) != "plot":
        assert "matplotlib" not in path.read_text()
    if not room(path).startswith("_engine"):
        assert not re.search(r"torch\._|[^_\w]_(functorch|autograd|dynamo)\b", path.read_text()), "private torch names"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_does_no_work():
    code = "import sys, random, torch; before = torch.get_rng_state(), random.getstate(); import auxnas_layers;"
    code += "assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate();"
    code += "print(*sys.modules)"
    loaded = python(code).split()
    assert not {"matplotlib", "torchvision", "timm", "torch._dynamo", "hypothesis"} & set(loaded)
    assert "matplotlib" in python("import auxnas_layers.plot, sys; print(*sys.modules)").split()  # the check can fail


@pytest.mark.parametrize("case", [case for case in CASES if case.name != "parametrised"], ids=repr)
def test_an_exported_network_is_picklable_without_the_library(case):
    wrapper = case.wrapper()
    case.example().call(wrapper)
    wrapper.close_aux_to_primary_()
    exported = wrapper.eval().export_primary(case.example())
    assert b"auxnas" not in pickle.dumps(exported)


def test_an_exported_network_loads_where_the_library_cannot_be_imported(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], example_inputs=x)
    loss_of(wrapper(x).aux).backward()
    wrapper.close_aux_to_primary_()
    net = wrapper.eval().export_primary()
    torch.save((net, x, net(x)), tmp_path / "net.pt")
    code = f"""
import sys, types, importlib.util
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "auxnas_layers":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
sys.modules["auxnas_layers"] = None
import torch
torch.set_num_threads(1)
from torch import nn
zoo = types.ModuleType("zoo")
sys.modules["zoo"] = zoo
class Cnn(nn.Module):
    def forward(self, x):
        return self.head(self.layer2(self.layer1(x)))
zoo.Cnn = Cnn
net, x, y = torch.load({str(tmp_path / "net.pt")!r}, weights_only=False)
assert torch.equal(net(x), y)
print("equal")
"""
    assert python(code).strip() == "equal"


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


def test_every_public_name_is_exported_and_documented():
    for name in auxnas_layers.__all__:
        assert getattr(auxnas_layers, name).__doc__, name
    reference = (ROOT / "docs" / "reference.md").read_text()
    assert not [name for name in auxnas_layers.__all__ if f"`{name}" not in reference]
    assert (PACKAGE / "py.typed").exists()


def blocks(path: Path) -> list[tuple[str, int, str]]:
    """Code blocks of a document: language, line, text; of a diff, what it leads to."""
    text = path.read_text()
    found = []
    for match in re.finditer(r"^```(python|diff)\n(.*?)^```", text, re.S | re.M):
        code = match[2]
        if match[1] == "diff":
            code = "\n".join(line[1:] for line in code.splitlines() if not line.startswith("-"))
        found.append((match[1], text[: match.start()].count("\n"), code))
    return found


class Classifier(Cnn):
    def forward(self, x):
        return super().forward(x).mean((2, 3))


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_in_documents_runs(path, tmp_path, monkeypatch):
    """All blocks of one document, in order, in one namespace that has the names a user would have."""
    monkeypatch.chdir(tmp_path)
    found = blocks(path)
    assert found or path.name in ("limits.md", "results.md", "supported.md", "performance.md"), "no code blocks"
    images = torch.randn(4, 3, 8, 8)
    loader = [(images, torch.randint(2, (4,)), torch.randn(4, 2, 4, 4))] * 8
    names = {
        "torch": torch,
        "nn": torch.nn,
        "primary_net": Classifier(),
        "aux_net": Cnn(),
        "images": images,
        "loader": loader,
        "with_both_labels": loader,
        "with_aux_labels_only": [(images, depths) for images, _, depths in loader],
        "total_steps": len(loader),
        "cross_entropy": torch.nn.functional.cross_entropy,
        "l1": torch.nn.functional.l1_loss,
    }
    for _, line, code in found:
        exec(compile("\n" * (line + 1) + code, str(path), "exec"), names)


def test_documents_name_only_files_and_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for path in DOCUMENTS:
        text = path.read_text()
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
        for target in re.findall(r"(?m)(?:^|`)make ([\w-]+)", text):
            assert f"\n{target}:" in makefile, f"{path.name}: make {target}"


@pytest.mark.parametrize("study", ["starts", "baselines", "entropy", "auxiliaries"])
def test_a_published_table_is_what_its_command_prints(study, tmp_path):
    script = str(ROOT / "examples" / f"{study}.py")
    done = subprocess.run([sys.executable, script, "--table"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = (ROOT / "docs" / "results.md").read_text()
    blocks = done.stdout.strip().split("\n\n")
    assert all(block in results for block in blocks) and done.stdout.count("\n") >= 8


@pytest.mark.parametrize(
    "script, document",
    [
        ("tests/models/table.py", "supported.md"),
        ("benchmarks/bench.py", "performance.md"),
        ("benchmarks/parts.py", "performance.md"),
    ],
)
def test_a_published_table_is_what_its_script_prints(script, document, tmp_path):
    options = ["--table"] if script.startswith("benchmarks/") else []
    done = subprocess.run([sys.executable, str(ROOT / script), *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "docs" / document).read_text()
    assert len(done.stdout.strip().splitlines()) > 5
    assert all(block in text for block in done.stdout.strip().split("\n\n"))


@pytest.mark.parametrize("data", ["rooms"])
def test_the_quickstart_runs(data, tmp_path):
    script = str(ROOT / "examples" / "quickstart.py")
    options = ["--data", data, "--frames", "2", "--steps", "12", "--seeds", "1", "--picture", "picture.png"]
    done = subprocess.run(
        [sys.executable, "-W", "error", script, *options], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "exported == primary: True (largest difference 0)" in done.stdout
    assert done.stdout.count("closed") == 9
    assert (tmp_path / "picture.png").stat().st_size > 10_000
