"""Runs that resume: each is a line of docs/results/runs.jsonl, written as it ends."""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from problem import Batch
from problems import PROBLEMS
from tqdm import tqdm
from training import Regime, Settings, evaluate, fit
from variants import VARIANTS

FILE = Path(__file__).parent.parent.parent / "docs" / "results" / "runs.jsonl"


@dataclass(frozen=True)
class Run:
    """A training run and the split that it is judged by."""

    problem: str
    method: str
    regime: Regime
    settings: Settings
    seed: int
    split: str = "test"


@lru_cache(1)
def load(problem: str, fast: bool) -> dict[str, Batch]:
    """The splits of a problem; the last one is kept."""
    return PROBLEMS[problem].load(fast)


def execute(run: Run, fast: bool) -> dict[str, float]:
    """Train, evaluate."""
    torch.set_num_threads(1)
    problem, method, data = PROBLEMS[run.problem], VARIANTS[run.method], load(run.problem, fast)
    start = time.perf_counter()
    model = fit(problem, method, data["train"], run.regime, run.settings, run.seed)
    seconds = time.perf_counter() - start
    return {"error": evaluate(problem, method.export(model), data[run.split]), "seconds": round(seconds, 1)}


def read(file: Path = FILE) -> dict[Run, dict[str, float]]:
    """All results so far."""
    results = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        found = json.loads(line)
        run, regime, settings = found["run"], Regime(**found["run"]["regime"]), Settings(**found["run"]["settings"])
        results[Run(**run | {"regime": regime, "settings": settings})] = found["found"]
    return results


def complete(
    runs: Sequence[Run], fast: bool = False, workers: int = 0, file: Path = FILE
) -> dict[Run, dict[str, float]]:
    """Do what is missing, in this order, each run in a process of its own, and return all results."""
    results = read(file)
    missing = [run for run in dict.fromkeys(runs) if run not in results]
    for name in dict.fromkeys(run.problem for run in missing):
        PROBLEMS[name].load(fast)  # made before processes ask for it at once
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        running = {pool.submit(execute, run, fast): run for run in missing}
        for done in tqdm(as_completed(running), "runs", len(missing), disable=not missing):
            run = running[done]
            results[run] = done.result()
            with file.open("a") as lines:
                lines.write(json.dumps({"run": asdict(run), "found": results[run]}) + "\n")
    return results
