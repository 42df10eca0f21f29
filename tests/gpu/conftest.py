"""These tests need a GPU. `AUXNAS_DEVICE=cpu` runs them on the CPU, but for those that need CUDA itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "speed"))

from gpu_pairs import CHOICE, CUDA, DEVICE, REASON, RUNS  # noqa: E402

IN_CHILD = "AUXNAS_IN_CHILD"
LIMIT = 150


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "child: runs in a process of its own, which it may leave in any state")
    config.addinivalue_line("filterwarnings", "error::auxnas_layers.errors.AuxNASWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not RUNS:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture
def device() -> torch.device:
    return DEVICE


@pytest.fixture(autouse=True)
def torch_as_it_starts():
    """Whole float32 precision, and no choice of algorithms by time, unless a test asks for it."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    if CUDA and IN_CHILD not in os.environ:
        torch.cuda.synchronize()  # what a kernel raises late is raised in the test that started it


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is marked as a child in a pytest of its own, which runs that test alone."""
    if not pyfuncitem.get_closest_marker("child") or IN_CHILD in os.environ:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:randomly"]
    command += [f"-W{option}" for option in pyfuncitem.config.known_args_namespace.pythonwarnings or ()]
    environment = {**os.environ, IN_CHILD: "1", CHOICE: str(DEVICE)}
    done = subprocess.run(
        [*command, f"{pyfuncitem.path}::{pyfuncitem.name}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    if done.returncode or "1 passed" not in done.stdout:
        pytest.fail(f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}", pytrace=False)
    return True
