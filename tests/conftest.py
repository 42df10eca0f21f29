import random

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("calm", deadline=None, max_examples=60, derandomize=True, database=None)
hypothesis.settings.load_profile("calm")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
    random.seed(0)


def pytest_make_parametrize_id(config, val, argname):
    return repr(val) if type(val).__name__ == "Case" else None
