"""The examples, which users copy: each runs by its command, is short, stands alone, and is shown on a page."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import ROOT
from safetensors.torch import load_file

DEMO = {"quickstart", "doom", "nets", "report", "rooms"}  # it has a test of its own; and what it imports
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem not in DEMO)
LINES = 100
ALLOWED = {  # warnings that come from a framework itself, by the example
    "hf_trainer": ["'pin_memory' argument is set as true"],
    "lora": ["`is_gradient_checkpointing` is deprecated"],
    "lightning_module": [
        "The 'train_dataloader' does not have many workers",
        "The 'val_dataloader' does not have many workers",
        "`isinstance(treespec, LeafSpec)` is deprecated",
    ],
}

every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def run(path: Path, folder: Path, *options: str) -> str:
    """What an example prints, run as its user would; a warning is an error."""
    allowed = [word for warning in ALLOWED.get(path.stem, []) for word in ("-W", f"ignore:{warning}")]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error", *allowed, str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@every_example
def test_an_example_runs_and_proves_its_export(path, tmp_path):
    printed = run(path, tmp_path, "--fast").rstrip().splitlines()
    assert printed[-1] == "exported == primary: True"
    assert len(printed) > 1, "an example prints a number of its own as well"


@every_example
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) < LINES


@every_example
def test_an_example_says_in_one_line_what_it_shows(path):
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
    assert len(first) > 30 and first.endswith(".")


@every_example
def test_an_example_imports_no_other_file_of_this_repository(path):
    names = {other.stem for other in path.parent.glob("*.py")}
    for node in ast.walk(ast.parse(path.read_text())):
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not names & set(found), f"line {node.lineno}"


@every_example
def test_an_example_is_shown_on_a_page(path):
    pages = (ROOT / "docs").rglob("*.md")
    assert any(re.search(rf'(?m)^--8<-- "examples/{path.name}"$', page.read_text()) for page in pages)


def test_the_minimal_example_resumes_and_saves_a_plain_network(tmp_path):
    path = ROOT / "examples" / "minimal.py"
    first = run(path, tmp_path, "--fast", "--epochs", "1")
    second = run(path, tmp_path, "--fast", "--epochs", "2", "--resume")
    assert "epoch 1:" in first and "epoch 2:" in second and "epoch 1:" not in second
    net = torchvision.models.resnet18(num_classes=3)
    net.load_state_dict(torch.load(tmp_path / "data" / "minimal" / "exported.pt"))


RESUMES = {  # the checkpoint to remove, how to resume from the one before it, what is exported
    "accelerate_loop": ("accelerate/5", ["--resume", "data/accelerate/4"], "accelerate/exported.pt", torch.load),
    "hf_trainer": ("hf_trainer/checkpoint-8", ["--resume"], "hf_trainer/exported/model.safetensors", load_file),
}


@pytest.mark.parametrize("name", RESUMES)
def test_a_resumed_training_exports_the_same_network(tmp_path, name):
    last, options, exported, load = RESUMES[name]
    path, data = ROOT / "examples" / f"{name}.py", tmp_path / "data"
    run(path, tmp_path, "--fast")
    whole = load(data / exported)
    (data / exported).unlink()
    shutil.rmtree(data / last)
    run(path, tmp_path, "--fast", *options)
    again = load(data / exported)
    assert again.keys() == whole.keys() and all(torch.equal(again[key], whole[key]) for key in whole)
    assert (data / last).exists(), "nothing was left to train"
