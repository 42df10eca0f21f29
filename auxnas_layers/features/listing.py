"""`list_taps`: a table of all layers of a network that can be tapped."""

from typing import Any

import torch
from torch import nn
from typing_extensions import override

from auxnas_layers.features.dry_run import LayerInfo, observe
from auxnas_layers.features.inputs import as_call
from auxnas_layers.features.taps import Point


class TapTable(tuple[tuple[str, str, LayerInfo], ...]):
    """Name, class and `LayerInfo` of each layer in call order; prints as a table."""

    @override
    def __str__(self) -> str:
        rows = [("name", "class", "calls", "shape", "layout or why not")]
        for name, kind, info in self:
            note = info.layout.text if info.layout else info.problem
            note = "called more than once" if info.calls > 1 else note
            rows.append((name, kind, str(info.calls), str(info.shape or ""), note))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [[*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]] for row in rows]
        return "\n".join(map("  ".join, lines))


def list_taps(net: nn.Module, *example_inputs: Any, **example_kwargs: Any) -> TapTable:
    """List the layers of a network that can be tapped, in call order, with the shapes of their features.

    Args:
        net: Any network; it is called once, in eval mode, and left unchanged.
        example_inputs: Positional arguments of that call, or a single `Inputs`.
        example_kwargs: Keyword arguments of that call.

    Returns:
        A tuple of (name, class name, `LayerInfo`) that prints as a table.

    >>> print(list_taps(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.zeros(2, 3)))
    name  class   calls  shape   layout or why not
    0     Linear  1      (2, 4)  b c
    1     ReLU    1      (2, 4)  b c
    """
    modules = {name: m for name, m in net.named_modules() if name and not isinstance(m, torch.jit.ScriptModule)}
    found, order = observe(net, as_call(example_inputs, example_kwargs), [Point(name) for name in modules])
    return TapTable((name, type(modules[name]).__name__, found[name]) for name in dict.fromkeys(order))
