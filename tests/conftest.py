"""Every test starts from the same random numbers. `--all` runs what the plain run leaves out."""

import gc
import random
from collections import defaultdict

import hypothesis
import pytest
import torch
from pairwise import pairwise

hypothesis.settings.register_profile("calm", deadline=None, max_examples=60, derandomize=True, database=None)
hypothesis.settings.load_profile("calm")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
    random.seed(0)


def pytest_collection_finish():
    """Let the garbage collector pass over what is there before the first test: torch, for the most part."""
    gc.collect()
    gc.freeze()


def pytest_make_parametrize_id(config, val, argname):
    return repr(val) if type(val).__name__ == "Case" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="all cases of tests marked pairwise, and tests marked slow")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --all, leave out slow tests, and of each pairwise grid all cases but a selection with every pair."""
    if config.getoption("--all"):
        return
    left_out = {item for item in items if item.get_closest_marker("slow")}
    grids: dict[object, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("pairwise") and hasattr(item, "callspec"):
            grids[item.path, tuple(item.callspec.params)].append(item)
    for grid in grids.values():
        kept = {grid[number] for number in pairwise([factors(item) for item in grid])}
        left_out |= {item for item in grid if item not in kept}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def factors(item: pytest.Item) -> list[object]:
    """Of what a case is made: its test, and the values of its arguments, which may be made of several."""
    parts: list[object] = [item.originalname]
    for value in item.callspec.params.values():
        parts += getattr(value, "factors", [id(value)])  # the same object in all cases that have it
    return parts
