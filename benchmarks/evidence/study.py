"""What the studies share: runs that resume, intervals over paired seeds, frames to choose by."""

import argparse
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from demo import doom
from scipy import stats
from torch import Tensor, nn
from tqdm import tqdm

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FRAMES = 60  # of each level
VALIDATION_LEVELS = 10

Run = dict[str, Any]


def run_missing(file: Path, tasks: list[Run], run: Callable[[Run], Run], workers: int = 0) -> list[Run]:
    """Run the tasks whose results are not in the file yet, and return all results; each run is saved as it ends.

    Args:
        file: JSON list of results: each a task with what `run` found.
        tasks: What tells one run from another.
        run: Runs a task, in another process.
        workers: Processes; by default one for each core.
    """
    results = json.loads(file.read_text()) if file.exists() else []
    missing = [task for task in tasks if not any(task.items() <= result.items() for result in results)]
    with ProcessPoolExecutor(workers or os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {pool.submit(run, task): task for task in missing}
        for done in tqdm(as_completed(running), "runs", len(missing), disable=not missing):
            results.append(running[done] | done.result())
            file.parent.mkdir(parents=True, exist_ok=True)
            lines = ",\n".join(json.dumps(result) for result in results)
            file.write_text(f"[\n{lines}\n]\n")
    return results


def read_options(description: str | None, file: str) -> argparse.Namespace:
    """What the user typed: where the results are, how many seeds to run, or only to print the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / file)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    return parser.parse_args()


def measured(description: str | None, file: Path, measure: Callable[[], Any]) -> tuple[Any, bool]:
    """Results of a measurement, and whether they are new: kept as JSON, or with ``--table`` read from there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    is_new = not parser.parse_args().table
    if is_new:
        file.write_text(json.dumps(measure(), indent=1) + "\n")
    return json.loads(file.read_text()), is_new


def half_width(values: list[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t; over two seeds or more."""
    return stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))


def interval(values: list[float], digits: int = 1) -> str:
    """Mean and 95 % interval over two seeds or more."""
    return f"{mean(values):+.{digits}f} +- {half_width(values):.{digits}f}"


class Side(nn.Module):
    """One of the outputs of a network that has several."""

    def __init__(self, net: nn.Module, number: int) -> None:
        super().__init__()
        self.net, self.number = net, number

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[self.number]


def frames_to_choose_by() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training frames without the validation levels, and the frames of these; the test levels stay untouched."""
    frames, _ = doom.load(Path("data"), FRAMES)
    held_out = VALIDATION_LEVELS * FRAMES
    return {k: v[:-held_out] for k, v in frames.items()}, {k: v[-held_out:] for k, v in frames.items()}
