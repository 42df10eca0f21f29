"""Pictures of the studies' runs: how far each method's error is from that of the network trained alone.

python benchmarks/evidence/pictures.py  # draws main.png, problems.png, labels.png from runs.jsonl in docs/results
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from methods import AUX_G, LIGHT, METHODS, OURS, PRETRAINED, SHARED, SINGLE
from runs import FILE, read
from studies import ALL, BETWEEN, CONTROLLED, FEW, STUDIES, Found
from study import half_width
from tables import differences, regime_name
from training import Regime

Gains = Mapping[str, list[float]]
"""Differences to the network trained alone by seed, in per cent of its error, for each name of a row."""
Place = tuple[str, str, Regime]
"""Problem, method and regime, however the settings were chosen."""
SHOWN = {
    (PRETRAINED, ""): "C3",
    (SHARED, ""): "C1",
    (AUX_G, ""): "C2",
    (OURS, ""): "C0",
    (LIGHT, ""): "C9",
    (OURS, "permuted"): "0.6",
}


def gains(study: str, found: Found) -> dict[Place, list[float]]:
    """Of the cells of a study that have two runs or more, in the seeds that single-task has as well."""
    errors = {(cell.problem, cell.method, cell.regime): cell.errors(found) for cell in STUDIES[study]()}
    every = {
        (problem, method, regime): differences(values, errors[problem, SINGLE, replace(regime, control="")], True)
        for (problem, method, regime), values in errors.items()
        if method != SINGLE
    }
    return {place: values for place, values in every.items() if len(values) >= 2}


def forest(ax: Axes, rows: Gains, colour: str = "C0", shift: float = 0.0, label: str = "") -> None:
    """Mean and 95 % interval of each row, the first one at the top."""
    for place, values in enumerate(rows.values()):
        if values:
            spot = {"color": colour, "marker": "o", "ms": 4, "lw": 1.5, "label": label}
            ax.errorbar(mean(values), place + shift, xerr=half_width(values), **spot)
            label = ""
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_xlabel("error, % over that of single-task")


def draw_main(found: Found, file: Path) -> None:
    """All methods on the main problems."""
    every = gains("main", found)
    problems = list(dict.fromkeys(problem for problem, _, _ in every))
    size = 2 + 4 * len(problems), 4.2
    figure, axes = plt.subplots(1, len(problems), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, problem in zip(axes[0], problems):
        rows = {method: every.get((problem, method, FEW), []) for method in METHODS if method != SINGLE}
        control = replace(FEW, control="permuted")
        rows |= {f"{name}, permuted": every.get((problem, name, control), []) for name in CONTROLLED}
        forest(ax, rows)
        ax.set_title(problem)
    finish(figure, axes[0], file)


def draw_problems(found: Found, file: Path) -> None:
    """The main methods on every problem, with few primary labels."""
    every = gains("few", found)
    problems = list(dict.fromkeys(problem for problem, _, _ in every))
    figure, ax = plt.subplots(figsize=(9, 1.5 + 0.5 * len(problems)), layout="constrained")
    for place, ((method, control), colour) in enumerate(SHOWN.items()):
        rows = {name: every.get((name, method, replace(FEW, control=control)), []) for name in problems}
        forest(ax, rows, colour, 0.13 * place - 0.33, f"{method}, permuted" if control else method)
    ax.set_title("100 primary labels, all auxiliary labels")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    finish(figure, [ax], file)


def draw_labels(found: Found, file: Path) -> None:
    """Ours and a shared backbone by number of labels, a panel for each problem."""
    every = gains("labels", found)
    problems, regimes = list(dict.fromkeys(problem for problem, _, _ in every)), (FEW, *BETWEEN, ALL)
    lines = math.ceil(len(problems) / 3)
    figure, axes = plt.subplots(lines, 3, figsize=(11, 2.5 * lines), sharex=True, sharey=True, layout="constrained")
    for ax, problem in zip(axes.flat, problems):
        for method, shift in ((SHARED, -0.1), (OURS, 0.1)):
            run = {place: every[problem, method, r] for place, r in enumerate(regimes) if (problem, method, r) in every}
            means, halves = [mean(values) for values in run.values()], [half_width(values) for values in run.values()]
            spots = {"fmt": "o", "color": SHOWN[method, ""], "ms": 4, "lw": 1.5, "label": method}
            ax.errorbar([place + shift for place in run], means, halves, **spots)
        ax.axhline(0, color="0.7", lw=0.8, zorder=0)
        ax.set_title(problem, fontsize=10)
        ax.set_xticks(range(len(regimes)), [regime_name(regime).replace(" / ", "\n") for regime in regimes])
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel("samples with the primary label, and with the auxiliary one", fontsize=10)
    figure.supylabel("error, % over that of single-task", fontsize=10)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def finish(figure: plt.Figure, axes: "list[Axes]", file: Path) -> None:
    """A line at no difference; save."""
    for ax in axes:
        ax.axvline(0, color="0.7", lw=0.8, zorder=0)
    axes[0].invert_yaxis()
    figure.savefig(file, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    found = read()
    draw_main(found, FILE.with_name("main.png"))
    draw_problems(found, FILE.with_name("problems.png"))
    draw_labels(found, FILE.with_name("labels.png"))
