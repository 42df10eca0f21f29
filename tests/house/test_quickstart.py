"""The examples run."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

QUICKSTART = "examples/quickstart.py"
SHORT = ["--data", "rooms", "--frames", "2", "--steps", "12", "--seeds", "1", "--picture", "picture.png"]


class OneAfterTheOther:
    """Stands for a pool of processes."""

    def __init__(self, workers: int) -> None:
        self.map = map

    def __enter__(self) -> "OneAfterTheOther":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def assert_quickstart(printed: str, picture: Path) -> None:
    assert "exported == primary: True (largest difference 0)" in printed
    assert printed.count("closed") == 9
    assert picture.stat().st_size > 10_000


def test_the_quickstart_runs(printed, tmp_path, monkeypatch):
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", OneAfterTheOther)
    assert_quickstart(printed(QUICKSTART, *SHORT), tmp_path / "picture.png")


@pytest.mark.slow
def test_the_quickstart_runs_by_its_command(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / QUICKSTART), *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_quickstart(done.stdout, tmp_path / "picture.png")
