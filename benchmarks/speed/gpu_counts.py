"""What a GPU does in a step, counted: waits of the host, kernels, and the peak of its memory."""

import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

Step = Callable[[], Any]
RANGES = ("Optimizer", "ProfilerStep", "##", "Torch-Compiled", "Context Sync")
"""How the names of profiled ranges begin that are no kernels."""


def clock() -> float:
    """Seconds, once the GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def waits(step: Step) -> Counter[str]:
    """How often, and in which lines, a call makes the host wait for the GPU, as torch's own warnings say."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [one for one in caught if "called a synchronizing" in str(one.message)]
    return Counter(f"{Path(one.filename).name}:{one.lineno}" for one in found)


def kernels(step: Step) -> int:
    """How many kernels and copies a call launches, in all threads."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.name.startswith(RANGES) for event in events)


def peak(step: Step, prepare: Step) -> int:
    """Bytes that a call needs on the GPU at once, beyond what is there before it, after some preparation."""
    prepare()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def host_time(step: Step, rounds: int) -> float:
    """Seconds until a call gives the host back, whatever the GPU still has to do; the median of some rounds."""
    times = []
    for _ in range(rounds):
        start = clock()
        step()
        times.append(time.perf_counter() - start)
    return median(times)
