"""Two processes on half of each batch get what one gets on the whole batch, in every framework."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_accelerate
import test_fabric
import test_lightning
import test_trainer
import torch
from helpers import ROOT
from samples import EPOCHS, STEPS, assert_close_states, assert_equal_states, batches, loss_of, wrap

pytestmark = test_lightning.pytestmark


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where both processes have left their states."""
    folder = tmp_path_factory.mktemp("two_processes")
    script = Path(__file__).with_name("two_processes.py")
    paths = os.pathsep.join([str(script.parent), str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        str(folder),
    ]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def by_torch(_: Path):
    wrapper = wrap()
    weights = torch.optim.AdamW(wrapper.param_groups(lr=1e-2))
    for step, (inputs, labels, others) in enumerate(batch for _ in range(EPOCHS) for batch in batches()):
        loss = wrapper.search_penalty(step / STEPS) + loss_of(wrapper(inputs), labels, others)
        weights.zero_grad()
        loss.backward()
        weights.step()
    return wrapper.state_dict()


ONE = {
    "torch": by_torch,
    "accelerate": lambda folder: test_accelerate.finish(folder, shuffle=False, step_scheduler_with_optimizer=False),
    "trainer": test_trainer.finish,
    "fabric": test_fabric.finish,
    "lightning": lambda folder: test_lightning.finish(folder, test_lightning.Task),
    "lightning_by_hand": lambda folder: test_lightning.finish(folder, test_lightning.TwoOptimisers),
}


@pytest.mark.parametrize("framework", ONE)
def test_two_halves_give_what_the_whole_batch_gives(folder, tmp_path, framework):
    first, second = (torch.load(folder / framework / f"rank{rank}.pt") for rank in range(2))
    assert_equal_states(first, second)
    assert_close_states(first, ONE[framework](tmp_path))
