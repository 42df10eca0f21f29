"""Runs that resume: each is a line of docs/results/runs.jsonl, written as it ends."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from composed import COMPOSED
from entered import enter
from further import FURTHER
from methods import Method
from neighbours import NEIGHBOURS
from problem import Batch
from problems import KNOWN
from study import RESULTS
from tqdm import tqdm
from training import Regime, RuleWatch, Settings, evaluate, fit
from variants import VARIANTS

FILE = RESULTS / "runs.jsonl"
METHODS = VARIANTS | COMPOSED | FURTHER | dict(way for group in NEIGHBOURS.values() for way in group.items())


def method_named(name: str) -> Method:
    """One of `METHODS`, or one from outside: see `entered`."""
    return METHODS[name] if name in METHODS else enter(name)


@dataclass(frozen=True)
class Run:
    """A training run, and the split that it is judged by."""

    problem: str
    method: str
    regime: Regime
    settings: Settings
    seed: int
    split: str = "test"


@lru_cache(1)
def load(problem: str, fast: bool) -> dict[str, Batch]:
    """The splits of a problem; the last one is kept."""
    return KNOWN[problem].load(fast)


def execute(run: Run, fast: bool) -> dict[str, Any]:
    """Train, evaluate."""
    torch.set_num_threads(1)
    problem, method, data = KNOWN[run.problem], method_named(run.method), load(run.problem, fast)
    watch = RuleWatch(problem, data["validation"], until=method.alone_from) if method.unless_aligned else None
    start = time.perf_counter()
    model = fit(problem, method, data["train"], run.regime, run.settings, run.seed, watch, data["validation"])
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
    found |= {"processor": processor(), "torch": torch.__version__}
    if watch and watch.rule:
        found |= {"cosines": rounded(watch.rule.alignment.cosines), "explained": rounded(watch.rule.explained)}
    return found | {"error": evaluate(problem, method.export(model), data[run.split])}


@lru_cache(1)
def processor() -> str:
    """What computes, by which results differ in their last digits, and with these where a run ends."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    return ", ".join(about.get(key, "") for key in ("model name", "cpu family", "model"))


def rounded(measured: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """To four decimals, by auxiliary."""
    return {name: [round(x, 4) for x in values] for name, values in measured.items()}


def read_options(description: str | None) -> argparse.Namespace:
    """What the user typed of a study: only the table, every path on next to no data, how many processes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--workers", type=int, default=0, help="processes; one for each core by default")
    return parser.parse_args()


@contextmanager
def completing(file: Path, options: argparse.Namespace) -> Iterator[Callable[[Sequence[Run]], dict[Run, Any]]]:
    """`complete` with these options; what is tried fast goes to a file that is not kept."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / file.name if options.fast else file
        yield partial(complete, fast=options.fast, workers=options.workers, file=kept)


def mend(file: Path) -> None:
    """Take away the last line if it was interrupted, so that the next one does not go on with it."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    if lines and not lines[-1].endswith("\n"):
        file.write_text("".join(lines[:-1]))


def read(file: Path = FILE) -> dict[Run, dict[str, Any]]:
    """All results so far."""
    results = {}
    for line in file.read_text().splitlines(keepends=True) if file.exists() else ():
        if not line.endswith("\n"):
            continue  # the last one was interrupted
        found = json.loads(line)
        run, regime, settings = found["run"], Regime(**found["run"]["regime"]), Settings(**found["run"]["settings"])
        results[Run(**run | {"regime": regime, "settings": settings})] = found["found"]
    return results


def complete(runs: Sequence[Run], fast: bool = False, workers: int = 0, file: Path = FILE) -> dict[Run, dict[str, Any]]:
    """Do what is missing, in this order, in processes of their own, and return all results."""
    mend(file)
    results = read(file)
    missing = [run for run in dict.fromkeys(runs) if run not in results]
    for name in dict.fromkeys(run.problem for run in missing):
        KNOWN[name].load(fast)  # made before processes ask for it at once
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        running = {pool.submit(execute, run, fast): run for run in missing}
        failed = []
        for done in tqdm(as_completed(running), "runs", len(missing), disable=not missing):
            run, error = running[done], done.exception()
            if error:
                failed.append((run, error))
                continue
            results[run] = done.result()
            with file.open("a") as lines:
                lines.write(json.dumps({"run": asdict(run), "found": results[run]}) + "\n")
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed; the first: {failed[0][0]}") from failed[0][1]
    return results
