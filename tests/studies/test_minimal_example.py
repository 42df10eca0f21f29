"""examples/minimal.py, which users copy: it trains, resumes and exports."""

import subprocess
import sys
from pathlib import Path

import torch
import torchvision

SCRIPT = Path(__file__).parents[2] / "examples" / "minimal.py"


def run(folder, *options):
    command = [sys.executable, "-W", "error", str(SCRIPT), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_minimal_example_trains_resumes_and_exports(tmp_path):
    first, second = run(tmp_path, "--epochs", "1"), run(tmp_path, "--epochs", "2", "--resume")
    assert "epoch 1:" in first and "epoch 2:" in second and "epoch 1:" not in second
    assert all("exported == primary: True (largest difference 0)" in text for text in (first, second))
    net = torchvision.models.resnet18(num_classes=3)
    net.load_state_dict(torch.load(tmp_path / "data" / "minimal" / "exported.pt"))


def test_the_minimal_example_is_short():
    assert len(SCRIPT.read_text().splitlines()) <= 70
