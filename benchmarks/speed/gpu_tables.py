"""The tables of what was measured on a GPU, beside the goals."""

from typing import Any

FACTORS = {"lock-step": 1.10, "closed": 1.05, "AuxG": 1.05, "light": 1.05}
"""The goals: the highest factor of each way to join."""
PEAK, EXPORTED = 1.10, 1.00
COLUMNS = ["ms", "time", "FLOPs", "factor", "goal", "peak", "goal", "host ms", "kernels", "waits"]


def print_tables(found: dict[str, Any]) -> None:
    """One table for each kind of part, and what was skipped."""
    machine, parts = found["machine"], found["parts"]
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for name, part in parts.items():
        if "plain" in part.get("ms", {}):
            print_joined(name, part)
    rows = {name: part for name, part in parts.items() if "difference" in part}
    if rows:
        print(f"\n| exported over primary | time | goal | difference |\n{'|---' * 4}|")
    for name, part in rows.items():
        print(f"| {name.partition(': ')[2]} | {part['time']:.2f}x | {EXPORTED:.2f}x | {part['difference']:g} |")
    print_edges({name: part["ms"] for name, part in parts.items() if name.startswith("edges alone")})
    if found["skipped"]:
        print(f"\nDid not fit into the budget: {'; '.join(found['skipped'])}.")


def print_joined(name: str, part: dict[str, Any]) -> None:
    """The steps of one pair of networks."""
    print(f"\n| {name} | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}")
    for step, ms in part["ms"].items():
        cells = [f"{ms:.1f}", *[""] * 4]
        if step in FACTORS:
            one = part[step]
            cells[1:] = [f"{one['time']:.2f}x", f"{one['flops']:.3f}x", f"**{one['factor']:.2f}**"]
            cells.append(f"{FACTORS[step]:.2f}")
        cells += [*peaks(part, step), *counts(part, step)]
        print(f"| {step} | {' | '.join(cells)} |")


def peaks(part: dict[str, Any], step: str) -> list[str]:
    """Peak memory in MiB, over that of both networks at once and the outputs of the edges; and the goal of that."""
    if "peak" not in part:
        return ["", ""]
    own = part["peak"][step]
    if step not in FACTORS or step == "light":
        return [f"{own / 2**20:.0f} MiB", ""]
    edges = part["edge bytes"] * (2 if step == "lock-step" else 1)
    return [f"{own / 2**20:.0f} MiB, {own / (part['peak']['at once'] + edges):.2f}x", f"{PEAK:.2f}x"]


def counts(part: dict[str, Any], step: str) -> list[str]:
    """Host time, kernels and waits, as far as they were measured."""
    host = f"{part['host ms'][step]:.1f}" if "host ms" in part else ""
    kernels = str(part["kernels"][step]) if "kernels" in part else ""
    return [host, kernels, str(sum(part["waits"][step].values())) if "waits" in part else ""]


def print_edges(rows: dict[str, dict[str, float]]) -> None:
    """Each form of the edges alone, in milliseconds and over that of the library."""
    if not rows:
        return
    forms = list(next(iter(rows.values())))
    print(f"\n| edges alone | {' | '.join(forms)} |\n{'|---' * (1 + len(forms))}|")
    for name, times in rows.items():
        cells = [f"{ms:.2f} ms, {ms / times[forms[0]]:.2f}x" for ms in times.values()]
        print(f"| {name.partition(': ')[2]} | {' | '.join(cells)} |")
