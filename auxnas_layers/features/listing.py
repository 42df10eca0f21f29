"""`list_taps`: a table of all layers of a network that can be tapped."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from auxnas_layers._torch.compiled import eager
from auxnas_layers.errors import TapError, bullets
from auxnas_layers.features.choice import candidates, listeners
from auxnas_layers.features.dry_run import LayerInfo, observe
from auxnas_layers.features.folding import Repeat, Row, fold
from auxnas_layers.features.inputs import Inputs, as_call
from auxnas_layers.features.parts import record
from auxnas_layers.features.taps import Point
from auxnas_layers.tables import html_lines, html_table

_HEAD = ("name", "class", "calls", "shape", "layout or why not")


class TapTable(tuple[tuple[str, str, LayerInfo], ...]):
    """Name, class and `LayerInfo` of each layer in call order; prints as a table, with repeated layers in one line."""

    @override
    def __str__(self) -> str:
        rows = [_HEAD, *self._rows()]
        widths = [max(len(row[i]) for row in rows if i < len(row) - 1) for i in range(4)]
        lines = [[*(cell.ljust(widths[i]) for i, cell in enumerate(row[:-1])), row[-1]] for row in rows]
        return "\n".join([*map("  ".join, lines), *([] if self else ["no such layer"])])

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows(), numbers=[2]) + ("" if self else html_lines("no such layer"))

    def _rows(self) -> list[Sequence[str]]:
        return [_repeated(one) if isinstance(one, Repeat) else _cells(one) for one in fold(self)]


def _cells(row: Row) -> Sequence[str]:
    name, kind, info = row
    note = info.layout.text if info.layout else info.problem
    note = "called more than once" if info.calls > 1 else note
    return name, kind, str(info.calls), str(info.shape or ""), note


def _repeated(repeat: Repeat) -> Sequence[str]:
    names = repeat.first if repeat.first == repeat.last else f"{repeat.first} to {repeat.last}"
    return names, repeat.kind, f"as {repeat.like}"


def list_taps(
    net: nn.Module,
    *example_inputs: Any,
    pattern: str | None = None,
    depth: int | None = None,
    suggested: bool = False,
    **example_kwargs: Any,
) -> TapTable:
    """List the layers of a network that can be tapped, in call order, with the shapes of their features.

    Args:
        net: Any network; it is called once, or twice for the suggested layers, in eval mode, and left unchanged.
        example_inputs: Positional arguments of that call, or a single `Inputs`.
        pattern: Only layers whose names match it, such as ``"blocks.*.attn"``, by `fnmatch.fnmatchcase`.
        depth: Only layers at most this many levels deep, 1 or more; 2 includes ``"blocks.0"``, not ``"blocks.0.attn"``.
        suggested: Only the layers that `suggest_taps` chooses from; it takes at most 12 of them.
        example_kwargs: Keyword arguments of that call. One called as an option above goes in `Inputs`:
            ``list_taps(net, Inputs((x,), {"depth": y}))``.

    Returns:
        A tuple of (name, class name, `LayerInfo`) that prints as a table.

    Raises:
        TapError: If `pattern`, `depth` or `suggested` is no such option.

    >>> print(list_taps(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.zeros(2, 3)))
    name  class   calls  shape   layout or why not
    0     Linear  1      (2, 4)  b c
    1     ReLU    1      (2, 4)  b c
    """
    _check(pattern, depth, suggested)
    call = as_call(example_inputs, example_kwargs)
    rows = _suggested(net, call) if suggested else _called(net, call)
    if pattern is not None:
        rows = [row for row in rows if fnmatchcase(row[0], pattern)]
    return TapTable(row for row in rows if depth is None or row[0].count(".") < depth)


def _check(pattern: Any, depth: Any, suggested: Any) -> None:
    """Refuse options that look like arguments of the network."""
    rules = {
        "pattern": ("a string", pattern, pattern is None or isinstance(pattern, str)),
        "depth": ("a whole number, at least 1", depth, depth is None or (type(depth) is int and depth >= 1)),
        "suggested": ("true or false", suggested, isinstance(suggested, bool)),
    }
    problems = [
        f"{name}={_shown(found)}: {name} of list_taps is {rule}; for an argument of the network write "
        f"Inputs((), {{{name!r}: ...}})"
        for name, (rule, found, right) in rules.items()
        if not right
    ]
    if problems:
        raise TapError(bullets("list_taps cannot use these options:", problems))


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float) else type(value).__name__


def _called(net: nn.Module, call: Inputs) -> list[Row]:
    """All layers that the network calls."""
    modules = {name: m for name, m in net.named_modules() if name and not isinstance(m, torch.jit.ScriptModule)}
    with eager():  # hooks break the graph of a block that is compiled as one
        found, order = observe(net, call, [Point(name) for name in modules])
    return [(name, type(modules[name]).__name__, found[name]) for name in dict.fromkeys(order)]


def _suggested(net: nn.Module, call: Inputs) -> list[Row]:
    """The layers that `suggest_taps` chooses from."""
    recorded = record(net, call)
    parts = listeners(recorded) or candidates(recorded)
    return [(part.name, type(net.get_submodule(part.name)).__name__, part.info) for part in parts]
