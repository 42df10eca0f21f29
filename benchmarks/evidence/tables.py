"""The tables of the studies, from the runs that are there."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import inf
from statistics import mean, median
from typing import Any

from cheaper import EVERY_STEP
from methods import AUX_G, LIGHT, MATCHED, METHODS, OURS, PRETRAINED, SHARED, SINGLE
from neighbours import NEIGHBOURS
from problems import PROBLEMS
from runs import method_named
from studies import CONTROLLED, Cell, Found
from study import RESULTS, half_width, interval
from training import Regime
from variants import ABLATIONS, UNSTOPPED

from auxnas_layers.verdict import is_aligned, is_learned

Errors = Mapping[int, float]
"""Error by seed."""
Costs = Mapping[str, Mapping[str, Any]]
"""For each way FLOPs of a step, forward and backward, and its CPU seconds in each of several rounds."""
PRICES = RESULTS / "price.json"
BASES = SINGLE, SHARED, OURS
WAYS = {
    OURS: "ours",
    LIGHT: "light auxiliary",
    SHARED: "shared backbone",
    PRETRAINED: "pretrained",
    MATCHED: "same compute",
}
OTHERS = {name: f"minus {WAYS.get(name, name)}" for name in (LIGHT, SHARED, PRETRAINED, MATCHED, AUX_G)}


def against(ours: Errors, base: Errors, percent: bool = False) -> str:
    """Mean difference over the seeds that both have, with its 95 % interval, and on how many it is better."""
    gains = differences(ours, base, percent)
    if len(gains) < 2 or ours is base:
        return ""
    better, equal = sum(gain < 0 for gain in gains), sum(gain == 0 for gain in gains)
    return f"{interval(gains)}{' %' * percent}, {better} of {len(gains)}" + f", {equal} equal" * (equal > 0)


def differences(ours: Errors, base: Errors, percent: bool = False) -> list[float]:
    """Differences by seed, over the seeds that both have; in per cent of the base's mean if asked for."""
    seeds = sorted(ours.keys() & base.keys())
    scale = 100 / mean(base[seed] for seed in seeds) if percent and seeds else 1.0
    return [scale * (ours[seed] - base[seed]) for seed in seeds]


def average(values: Errors) -> str:
    """Mean over seeds, to four digits."""
    return f"{mean(values.values()):#.4g}" if values else ""


def show(head: Iterable[str], rows: Iterable[Iterable[str]], caption: str = "") -> None:
    """Print as Markdown what has rows, without the columns in which all of them are empty."""
    rows = list(rows)
    if not rows:
        return
    columns = [column for column in zip(head, *rows, strict=True) if any(column[1:])]
    head, *rows = zip(*columns)
    if caption:
        print(f"{caption}\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def regime_name(regime: Regime) -> str:
    """As a reader would say it."""
    labels = str(regime.labels) if regime.labels else "all"
    return f"{labels} / all" if regime.plenty or not regime.labels else f"{labels} / {labels}"


def main_table(cells: list[Cell], found: Found) -> None:
    """For each problem, every method against the network alone, a shared backbone and ours; its settings."""
    for problem in dict.fromkeys(cell.problem for cell in cells):
        row_cells = [cell for cell in cells if cell.problem == problem]
        errors = {cell: values for cell in row_cells if (values := cell.errors(found))}
        if not errors:
            continue
        base = {cell.method: values for cell, values in errors.items() if not cell.regime.control}
        show(
            ("method", "error", *(f"minus {name}" for name in BASES), "lr, decay, steps, aux. weight"),
            (_main_row(cell, values, base, found) for cell, values in errors.items()),
            f"{problem}: {PROBLEMS[problem].metric}; 100 samples with the primary label",
        )


def cell_name(cell: Cell) -> str:
    """Its method, and whether its labels are permuted."""
    return f"{cell.method}, labels permuted" if cell.regime.control else cell.method


def _main_row(cell: Cell, values: Errors, base: Mapping[str, Errors], found: Found) -> tuple[str, ...]:
    s, method = cell.settings(found), method_named(cell.method)
    settings = f"{s.lr:g}, {s.weight_decay:g}, {round(method.stretch * s.steps)}"
    settings += f", {s.aux_weight:g}" if method.alone_from else ""
    differences = (against(values, base.get(name, {})) for name in BASES)
    return cell_name(cell), f"{average(values)}, {len(values)} seeds", *differences, settings


def core_table(cells: list[Cell], found: Found) -> None:
    """For each problem: methods against single-task, ours against them, the controls, all errors."""
    rows: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        name = f"{cell.method}, permuted" if cell.regime.control else cell.method
        rows.setdefault(cell.problem, {})[name] = cell
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    gains, minus, controls, errors = [], [], [], []
    for problem, row in rows.items():
        by_name = {name: cell.errors(found) for name, cell in row.items()}
        ours, single = by_name[OURS], by_name[SINGLE]
        if len(ours) < 2:
            continue
        gains.append((problem, *(against(by_name.get(name, {}), single, percent=True) for name in WAYS)))
        minus.append((problem, *(against(ours, by_name.get(name, {}), percent=True) for name in OTHERS)))
        permuted = (against(by_name.get(f"{name}, permuted", {}), single, percent=True) for name in CONTROLLED)
        controls.append((problem, *permuted, _stopped(row[OURS], found)))
        errors.append((problem, *(average(by_name.get(name, {})) for name in names)))
    head = "primary <- auxiliary"
    caption = "error minus that of single-task, in % of it, with its 95 % interval; on how many seeds it is lower"
    show((head, *WAYS.values()), gains, caption)
    show((head, *OTHERS.values()), minus, "error of ours minus that of others, in % of it")
    caption = "permuted auxiliary labels, against single-task; true ones that the rule stopped early + at half"
    show((head, *(f"{name}, permuted" for name in CONTROLLED), "stopped, mean cosine"), controls, caption)
    show((head, *names), errors, "errors, in the unit of each data set")


def labels_table(cells: list[Cell], found: Found) -> None:
    """For each problem and each number of labels: ours and a shared backbone, the control, all errors."""
    at = {(cell.problem, cell.method, cell.regime): cell for cell in cells}
    errors = {place: cell.errors(found) for place, cell in at.items()}
    problems = list(dict.fromkeys(problem for problem, _, _ in at))
    regimes = list(dict.fromkeys(regime for _, _, regime in at if not regime.control))

    def by_labels(caption: str, text: Callable[[str, Regime], str]) -> None:
        rows = [(problem, *(text(problem, regime) for regime in regimes)) for problem in problems]
        show(("primary <- auxiliary", *map(regime_name, regimes)), (row for row in rows if any(row[1:])), caption)

    def gain(method: str, base: str, control: str = "") -> Callable[[str, Regime], str]:
        def text(problem: str, regime: Regime) -> str:
            values = errors.get((problem, method, replace(regime, control=control)), {})
            return against(values, errors[problem, base, regime], percent=True)

        return text

    def stopped(problem: str, regime: Regime) -> str:
        return _stopped(at[problem, OURS, regime], found) if errors[problem, OURS, regime] else ""

    by_labels("ours minus single-task, in % of it", gain(OURS, SINGLE))
    by_labels("shared backbone minus single-task, in % of it", gain(SHARED, SINGLE))
    by_labels("ours minus shared backbone, in % of it", gain(OURS, SHARED))
    by_labels("ours with permuted auxiliary labels minus single-task, in % of it", gain(OURS, SINGLE, "permuted"))
    by_labels("true auxiliaries that the rule stopped early + at half, mean cosine", stopped)
    for method in BASES:
        by_labels(f"error of {WAYS.get(method, method)}", lambda p, regime, m=method: average(errors[p, m, regime]))
    _weights_table(cells, found)


def summary_table(cells: list[Cell], found: Found) -> None:
    """For each number of labels and each way, in how many experiments it is better and worse than single-task."""
    errors = {(c.problem, c.method, c.regime): c.errors(found) for c in cells if not c.regime.control}
    lines = []
    for regime in dict.fromkeys(regime for _, _, regime in errors):
        problems = [problem for problem, method, r in errors if (method, r) == (SINGLE, regime)]
        pairs = {way: [(errors.get((p, way, regime), {}), errors[p, SINGLE, regime]) for p in problems] for way in WAYS}
        lines.append((regime_name(regime), *(_verdict(pairs[way]) for way in WAYS)))
    caption = "in how many experiments the error is lower and higher than that of single-task; its mean change"
    show(("labels: primary / auxiliary", *WAYS.values()), lines, caption)


def _verdict(pairs: Iterable[tuple[Errors, Errors]]) -> str:
    """Of a way against single-task, an experiment each: where the 95 % interval leaves out 0, and the mean over all."""
    gains = [differences(values, base, percent=True) for values, base in pairs if len(values) > 1]
    better = sum(mean(gain) + half_width(gain) < 0 for gain in gains)
    worse = sum(mean(gain) - half_width(gain) > 0 for gain in gains)
    return f"{better} lower, {worse} higher of {len(gains)}; {mean(map(mean, gains)):+.1f} %" if gains else ""


def _weights_table(cells: list[Cell], found: Found) -> None:
    """Trials where all samples carry both labels, and that differ by the weight of the auxiliary's loss alone."""
    rows: dict[Regime, dict[str, dict[float, str]]] = {}
    for cell in (cell for cell in cells if cell.method == OURS and not (cell.regime.plenty or cell.regime.control)):
        trials = cell.trials()
        like, alone = trials[0].settings, replace(trials[0], method=SINGLE)
        alike = [run for run in trials if replace(run.settings, aux_weight=like.aux_weight) == like]
        runs = {0.0: alone} | {run.settings.aux_weight: run for run in alike}
        texts = {weight: average({0: found[run]["error"]}) for weight, run in runs.items() if run in found}
        rows.setdefault(alone.regime, {})[cell.problem] = texts
    for regime, by_problem in sorted(rows.items(), key=lambda row: row[0].labels or inf):
        weights = sorted({weight for texts in by_problem.values() for weight in texts})
        head = ("primary <- auxiliary", *(f"ours, {weight:g}" if weight else SINGLE for weight in weights))
        lines = ((problem, *(texts.get(weight, "") for weight in weights)) for problem, texts in by_problem.items())
        caption = "validation error in trials of one rate, decay and seed, by the weight of the auxiliary's loss"
        show(head, lines, f"{regime_name(regime)}: {caption}")


def ablation_table(cells: list[Cell], found: Found) -> None:
    """Every change of the default, against the default."""
    errors = {cell.method: cell.errors(found) for cell in cells}
    groups = {name: group for some in (ABLATIONS, NEIGHBOURS) for group, names in some.items() for name in names}
    lines = [
        (groups.get(name, ""), name, average(values), against(values, errors[OURS]))
        for name, values in errors.items()
        if values
    ]
    show(("what is changed", "how", "error", "minus the default"), lines)


def luck_table(cells: list[Cell], found: Found) -> None:
    """Ours against others, under the best and the second best settings."""
    errors = {(cell.problem, cell.method + ", second" * cell.place): cell.errors(found) for cell in cells}
    for mine, theirs in (((0,), SINGLE), ((0, 1), SHARED)):
        ours, others = [OURS + ", second" * place for place in mine], [theirs, f"{theirs}, second"]
        lines = []
        for problem in (problem for problem, name in errors if name == others[0]):
            gains = (against(errors[problem, a], errors[problem, b], percent=True) for a in ours for b in others)
            lines.append((problem, *(average(errors[problem, name]) for name in (*ours, *others)), *gains))
        show(("primary <- auxiliary", *ours, *others, *(f"{a} minus {b}" for a in ours for b in others)), lines)


def harm_table(cells: list[Cell], found: Found) -> None:
    """Auxiliaries that cannot help or are too strong, against single-task, and how often `Alignment` warns."""
    errors = {cell: cell.errors(found) for cell in cells}
    single = {cell.problem: values for cell, values in errors.items() if cell.method == SINGLE}
    lines = []
    for cell, values in errors.items():
        auxiliary = "" if cell.method == SINGLE else cell.regime.control or "as it is"
        stopped = _stopped(cell, found) if method_named(cell.method).unless_aligned and values else ""
        gain = against(values, single[cell.problem])
        lines.append((cell.problem, cell.method, auxiliary, average(values), gain, stopped))
    head = "primary <- auxiliary", "method", "auxiliary", "error", "minus single-task", "stopped, mean cosine"
    show(head, (line for line in lines if line[3]))
    print("taken for unlearned in all studies:", count_unlearned(found, "permuted"), "with permuted labels,", end=" ")
    print(count_unlearned(found, "too strong"), "with too strong a loss,", count_unlearned(found, ""), "of the others")


def rule_table(cells: list[Cell], found: Found) -> None:
    """For each problem, ours with the stop rule and without it, under true and permuted labels."""
    lines = []
    for problem in dict.fromkeys(cell.problem for cell in cells):
        row = {(c.method, c.regime.control): c.errors(found) for c in cells if c.problem == problem}
        for control in ("", "permuted"):
            ours, unstopped = row[OURS, control], row[UNSTOPPED, control]
            gains = (against(values, row[SINGLE, ""], percent=True) for values in (ours, unstopped))
            lines.append((problem, control or "true", *gains, against(ours, unstopped, percent=True)))
    head = "primary <- auxiliary", "auxiliary labels", "ours", "without the rule", "what the rule changes"
    caption = "error minus that of single-task, in % of it, with its 95 % interval; on how many seeds it is lower"
    show(head, (line for line in lines if line[3]), caption)


def price_table(cells: list[Cell], found: Found) -> None:
    """For each problem, error and cost of every way; runs of one machine are compared with ours on it."""
    costs: Costs = json.loads(PRICES.read_text())
    for problem in dict.fromkeys(cell.problem for cell in cells):
        errors = {cell.method: cell.errors(found) for cell in cells if cell.problem == problem}
        lines = []
        for name, values in errors.items():
            seeds = values.keys() & errors[SINGLE].keys()
            if len(seeds) < 2:
                continue
            share = 100 * mean(values[s] for s in seeds) / mean(errors[SINGLE][s] for s in seeds)
            base = errors[OURS if name in (*METHODS, EVERY_STEP) else EVERY_STEP]
            gain = against(values, base, percent=True)
            lines.append((name, f"{share:.1f} %, {len(seeds)} seeds", gain, *price_of(name, costs)))
        head = "", "error, of that of single-task", "minus ours", "FLOPs of a step", "CPU time of a step"
        show(head, lines, f"{problem}: error and cost of a step over those of single-task")


def price_of(name: str, costs: Costs) -> tuple[str, str]:
    """FLOPs and CPU time of a step over those of the network alone; of time the median over rounds."""
    own, alone = costs.get(name), costs[SINGLE]
    if not own:
        return "", ""
    times = [a / b for a, b in zip(own["seconds"], alone["seconds"], strict=True)]
    return f"{own['flops'] / alone['flops']:.2f}x", f"{median(times):.2f}x"


def count_unlearned(found: Found, control: str) -> str:
    """How many auxiliaries of a control the stop rule takes for such as are not learned."""
    shares = [
        s for run, got in found.items() if run.regime.control == control for s in got.get("explained", {}).values()
    ]
    return f"{sum(not is_learned(s) for s in shares)} of {len(shares)}"


def _stopped(cell: Cell, found: Found) -> str:
    """In how many runs an auxiliary was not learned, and in how many not aligned; and the mean over all cosines."""
    runs = [found[run] for run in cell.runs(found) if run in found]
    measured = [(run["explained"][name], run["cosines"][name]) for run in runs for name in run["cosines"]]
    unlearned = sum(not is_learned(shares) for shares, _ in measured)
    unaligned = sum(is_learned(shares) and not is_aligned(cosines) for shares, cosines in measured)
    return f"{unlearned} + {unaligned} of {len(measured)}, {mean(mean(cosines) for _, cosines in measured):+.2f}"


TABLES: dict[str, Callable[[list[Cell], Found], None]] = {
    "main": main_table,
    "few": core_table,
    "labels": labels_table,
    "summary": summary_table,
    "ablations": ablation_table,
    "neighbours": ablation_table,
    "harm": harm_table,
    "rule": rule_table,
    "luck": luck_table,
    "price": price_table,
}
