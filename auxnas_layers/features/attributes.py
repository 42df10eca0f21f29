"""What a network keeps in plain attributes, such as a hidden state, a counter or a cache, as it was before a call."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_OF_TORCH = set(vars(nn.Module()))
_COPY: dict[type, Any] = {list: list, dict: dict, set: set, deque: list}


@contextmanager
def kept_attributes(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the plain attributes of modules, and the items of lists, dicts and sets among them.

    Not of a module that has got other parameters, buffers, modules or another class meanwhile: it has been built. Nor
    of this library's own modules, which may get their sizes.

    >>> net = nn.Linear(2, 2)
    >>> net.calls = [1]
    >>> with kept_attributes([net]):
    ...     net.calls.append(2)
    ...     net.cache = 3
    >>> net.calls, hasattr(net, "cache")
    ([1], False)
    """
    plain = [module for module in modules if not isinstance(module, torch.jit.ScriptModule) and not _is_ours(module)]
    saved = [(module, _built(module), _attributes(module)) for module in plain]
    try:
        yield
    finally:
        for module, built, attributes in saved:
            if _built(module) == built:
                _restore_(vars(module), attributes)


def _is_ours(module: nn.Module) -> bool:
    return any(kind.__module__.partition(".")[0] == "auxnas_layers" for kind in type(module).__mro__)


def _built(module: nn.Module) -> tuple[Any, ...]:
    return type(module), *(list(one) for one in (module._parameters, module._buffers, module._modules))


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute, and a copy of its items if it has any that may change."""
    found = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    return {name: (value, _COPY[type(value)](value) if type(value) in _COPY else None) for name, value in found.items()}


def _restore_(now: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in now if name not in before and name not in _OF_TORCH]:
        del now[name]
    for name, (value, items) in before.items():
        if now.get(name) is not value:
            now[name] = value
        if items is None or _alike(value, items):
            continue
        value.clear()
        value.update(items) if isinstance(value, dict | set) else value.extend(items)


def _alike(value: Any, items: Any) -> bool:
    """Whether a container has the same objects as before, in the same order; by identity, since tensors have no ==."""
    if len(value) != len(items):
        return False
    if isinstance(value, dict):
        return list(map(id, value)) == list(map(id, items)) and _alike(list(value.values()), list(items.values()))
    return all(a is b for a, b in zip(value, items, strict=True))
