"""These tests need a GPU. `AUXNAS_DEVICE=cpu` runs them on the CPU, but for those that need CUDA itself."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "speed"))

from gpu_pairs import CHOICE, CUDA, DEVICE, IN_CHILD, REASON, RUNS  # noqa: E402

LIMIT = 200


def pytest_configure(config: pytest.Config) -> None:
    mark = "child: runs in another process, which it may leave in any state; together: one for all of the file"
    config.addinivalue_line("markers", mark)
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
    """Run a test that is marked as a child in another process, and fail as it fails there."""
    mark = pyfuncitem.get_closest_marker("child")
    if mark is None or IN_CHILD in os.environ:
        return None
    options = tuple(f"-W{option}" for option in pyfuncitem.config.known_args_namespace.pythonwarnings or ())
    same = [item for item in pyfuncitem.session.items if item.path == pyfuncitem.path]
    chosen = [item for item in same if item.get_closest_marker("child") == mark] if mark.kwargs else [pyfuncitem]
    printed = in_child(options + tuple(str(item.path) + item.nodeid[item.nodeid.index("::") :] for item in chosen))
    if not re.search(rf"^PASSED \S*{re.escape(pyfuncitem.path.name)}::{re.escape(pyfuncitem.name)}$", printed, re.M):
        pytest.fail(printed[-12_000:], pytrace=False)
    return True


@functools.cache
def in_child(arguments: tuple[str, ...]) -> str:
    """What a pytest of its own prints."""
    command = [sys.executable, "-m", "pytest", "-q", "-rp", "-p", "no:xdist", *arguments]
    environment = {**os.environ, IN_CHILD: "1", CHOICE: str(DEVICE)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        return f"no end after {LIMIT} seconds:\n{error.stdout}"
    return f"{done.stderr[-4000:]}\n{done.stdout}"
