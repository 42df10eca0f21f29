"""The benchmark for GPUs runs on a CPU, on small networks."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "speed" / "gpu.py"


def run(*options: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("speed") / "gpu.json"


@pytest.fixture(scope="module")
def printed(file):
    return run("--device", "cpu", "--tiny", "--out", str(file))


def test_every_part_is_measured_and_saved(printed, file):
    found = json.loads(file.read_text())
    assert not found["skipped"]
    joined = [part for part in found["parts"].values() if "lock-step" in part]
    assert len(joined) == 5 and len(found["parts"]) == 11
    for part in joined:
        assert part["lock-step"]["flops"] > part["closed"]["flops"] == part["AuxG"]["flops"] > 1
        assert part["closed"]["factor"] == part["closed"]["time"] / part["closed"]["flops"]
    assert [p["difference"] for name, p in found["parts"].items() if name.startswith("exported")] == [0.0, 0.0]
    assert found["machine"]["card"] == "none, a CPU"


def test_the_tables_are_printed_again_from_what_was_saved(printed, file):
    assert run("--table", "--out", str(file)) == printed
    assert printed.count("| lock-step |") == 5 and "1.10" in printed


def test_parts_that_do_not_fit_into_the_budget_are_named(tmp_path):
    printed = run("--device", "cpu", "--tiny", "--budget", "-1", "--out", str(tmp_path / "gpu.json"))
    assert "Did not fit into the budget: ViT-B/16, 12 taps; ResNet-50, 4 taps;" in printed
    assert "lock-step" not in printed
