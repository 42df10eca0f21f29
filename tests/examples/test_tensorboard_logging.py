"""examples/tensorboard_logging.py: what it logs is in TensorBoard's file."""

import subprocess
import sys

import pytest
from helpers import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = ROOT / "examples" / "tensorboard_logging.py"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the example prints, and its log as TensorBoard reads it."""
    folder = tmp_path_factory.mktemp("logging")
    command = [sys.executable, "-W", "error", str(SCRIPT), "--fast", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    log = EventAccumulator(str(folder))
    log.Reload()
    return done.stdout, log


def test_losses_gates_and_verdicts_of_every_step_are_logged(ran):
    _, log = ran
    gates = {f"{kind}/{way}" for kind in ("gate", "open_edges") for way in ("aux_to_primary", "primary_to_aux")}
    assert set(log.Tags()["scalars"]) == gates | {"loss/primary", "loss/aux", "goes_on/aux"}
    for name in log.Tags()["scalars"]:
        assert [event.step for event in log.Scalars(name)] == list(range(60))
    assert log.Scalars("gate/aux_to_primary")[0].value > 0
    closed = [event.value for event in log.Scalars("open_edges/aux_to_primary")]
    assert closed[0] == 6 and not any(closed[24:])  # from 40 % on
    assert {event.value for event in log.Scalars("gate/primary_to_aux")} == {1.0}
    assert log.Scalars("loss/primary")[-1].value < log.Scalars("loss/primary")[0].value


def test_pictures_and_texts_are_logged(ran):
    _, log = ran
    assert {name: len(log.Images(name)) for name in log.Tags()["images"]} == {"cost": 1, "networks": 3, "gates": 1}
    verdicts = [event.tensor_proto.string_val[0].decode() for event in log.Tensors("verdict/aux/text_summary")]
    assert len(verdicts) == 3 and all("of its held-out loss; mean cosine" in verdict for verdict in verdicts)


def test_it_prints_what_it_read_back_and_that_the_export_is_exact(ran):
    printed, log = ran
    last = log.Scalars("loss/primary")[-1].value
    assert f"loss/primary                     60 values, first {log.Scalars('loss/primary')[0].value:.3f}" in printed
    assert f"last {last:.3f}" in printed and printed.rstrip().endswith("exported == primary: True")


def test_the_example_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 100
