"""The quickstart's table and picture."""

import matplotlib.pyplot as plt
from torch import Tensor, nn

from auxnas_layers import Architecture
from auxnas_layers.plot import plot_edges, plot_gates


def print_errors(single_task: list[float], exported: list[float]) -> None:
    """Errors of both methods by seed, and their means."""
    print("\nmean absolute error of log depth x 1000, on levels that were not trained on (lower is better)")
    print("seed  single-task  Aux-NAS, exported  difference")
    mean = sum(single_task) / len(single_task), sum(exported) / len(exported)
    for seed, (single, ours) in [*enumerate(zip(single_task, exported)), ("mean", mean)]:
        print(f"{seed:>4}  {single:11.1f}  {ours:17.1f}  {ours - single:+10.1f}")
    print()


def draw(
    file: str, history: list[tuple[float, Architecture]], nets: dict[str, nn.Module], test: dict[str, Tensor]
) -> None:
    """Gates over time, the final edges, and predictions on frames of levels that nobody was trained on."""
    figure = plt.figure(figsize=(12, 9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2, 3))
    axes = upper.subplots(1, 2)
    plot_gates(history, axes[0]).set_title("gates over training")
    plot_edges(history[-1][1], axes[1]).set_title("final edges (dotted: closed)")
    every = max(1, len(test["image"]) // 6)
    frames, depth = test["image"][::every][:6], test["primary"][::every][:6]
    maps = {"depth": depth, **{name: net(frames).detach() for name, net in nets.items()}}
    low, high = depth.amin((1, 2, 3)).tolist(), depth.amax((1, 2, 3)).tolist()
    grid = lower.subplots(1 + len(maps), len(frames))
    for i, frame in enumerate(frames):
        grid[0, i].imshow(frame.permute(1, 2, 0).numpy())
        for row, predicted in enumerate(maps.values(), start=1):
            grid[row, i].imshow(predicted[i, 0].numpy(), vmin=low[i], vmax=high[i], cmap="magma")
    for ax, name in zip(grid[:, 0], ["frame", *maps]):
        ax.set_ylabel(name)
    for ax in grid.flat:
        ax.set(xticks=[], yticks=[])
    figure.savefig(file, dpi=100)
