"""What ties a copy to its original: functions, weak references and views, which `copy.deepcopy` leaves as they are."""

import copy
import dis
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from auxnas_layers.features.undisturbed import same

_CACHED = type(lru_cache(len))
_BOUND = types.MethodType | types.BuiltinMethodType
_LEAF = (type, types.ModuleType, types.CodeType, str, bytes, int, float, complex, torch.jit.ScriptModule)
_MOST = 10_000  # objects through which a search goes beyond the copy


def references(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object refers to, each with what a message adds to the object's own name."""
    if isinstance(value, types.FunctionType):
        names = (f" -> {name}" for name in value.__code__.co_freevars)
        yield from zip(names, map(content, value.__closure__ or ()), strict=True)
        yield from ((f" -> {name}", item) for name, item in (value.__kwdefaults__ or {}).items())
        yield from ((" -> a default", item) for item in value.__defaults__ or ())
    elif isinstance(value, _BOUND):
        yield f" -> {value.__name__} of", value.__self__
        yield "", getattr(value, "__func__", None)
        return
    elif isinstance(value, partial):
        yield from (("", item) for item in (value.func, value.args, value.keywords))
    elif isinstance(value, _CACHED):
        yield "", value.__wrapped__
    elif isinstance(value, weakref.ref):
        yield "", value()
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", item) for key, item in dict.items(value))
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from ((f"[{i}]", item) for i, item in enumerate(value))
    yield from ((f".{name}", item) for name, item in attributes_of(value).items())


def content(cell: types.CellType) -> Any:
    """What a cell of a closure holds; None if it is empty still."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes of an object itself; those of a method belong to its function."""
    try:
        found = {} if isinstance(value, (*_LEAF, types.MethodType)) else getattr(value, "__dict__", {})
    except Exception:  # a property of the user's
        return {}
    return found if isinstance(found, dict) else {}


def path_to(
    start: Any, found: Callable[[Any], bool], most: float = _MOST, barren: dict[int, Any] | None = None
) -> str | None:
    """The shortest way from an object to one for which `found` is true, as messages name it; None if there is none.

    Args:
        start: The object.
        found: The question.
        most: How many objects to go through, about.
        barren: Objects by identity that lead to none; those that this search goes through in vain are added.
    """
    barren = {} if barren is None else barren
    seen, level = {id(start): start}, [("", start)]
    while level and len(seen) < most:
        below = []
        for path, value in level:
            for name, item in references(value):
                if found(item):
                    return path + name
                if id(item) not in seen and id(item) not in barren and not isinstance(item, _LEAF):
                    seen[id(item)] = item
                    below.append((path + name, item))
        level = below
    ahead = {id(value) for _, value in level}
    barren.update((key, value) for key, value in seen.items() if key not in ahead)
    return None


def named_by_a_global(original: nn.Module) -> Callable[[Any], bool]:
    """Tells whether an object is a function that finds a network, or a part of it, by the name of a global variable."""
    parts = set(map(id, (*original.modules(), *original.parameters(), *original.buffers())))

    def found(value: Any) -> bool:
        if not isinstance(value, types.FunctionType):
            return False
        used = (value.__globals__.get(name) for name in _globals_of(value.__code__))
        return any(id(getattr(item, "__self__", item)) in parts for item in used)

    return found


@lru_cache(1000)
def _globals_of(code: types.CodeType) -> frozenset[str]:
    """The names of the global variables that a function reads; an attribute may have the same name."""
    names = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return frozenset(names).union(*(_globals_of(one) for one in code.co_consts if isinstance(one, types.CodeType)))


def storage_of(tensor: Tensor) -> tuple[str, int] | None:
    """Where a tensor's values are; None if it has none of its own."""
    try:
        place = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, or a tensor of tensors
        return None
    return (str(tensor.device), place) if place else None


def _same_part(part: Tensor, whole: Tensor, copied: Tensor) -> Tensor | None:
    """The part of a copy that another tensor is of its original, whatever their dtypes; None if the copy lacks it."""
    start = part.storage_offset() * part.element_size() - whole.storage_offset() * whole.element_size()
    start += copied.storage_offset() * copied.element_size()
    if copied.stride() != whole.stride() or start < 0 or start % part.element_size():
        return None
    try:
        flat = torch.empty(0, dtype=part.dtype, device=part.device).set_(copied.untyped_storage())
        found = flat.as_strided(part.shape, part.stride(), start // part.element_size())
    except RuntimeError:  # out of bounds: a parameter's copy has only the parameter's own part of a flat tensor
        return None
    return found if same(found, part) else None


class Ties:
    """Cuts, all over a copy, what still refers to the original, by referring to what was copied from it instead.

    Args:
        memo: That of the `copy.deepcopy` that has made the copy.
        nets: The networks that were copied.
    """

    def __init__(self, memo: dict[int, Any], nets: list[nn.Module]) -> None:
        self.memo = memo
        self.registered = {id(t): t for net in nets for t in (*net.parameters(), *net.buffers())}
        self.storages = {place: t for t in self.registered.values() if (place := storage_of(t)) and id(t) in memo}
        self.functions: dict[int, types.FunctionType] = {}
        self.cells: dict[int, types.CellType] = {}
        self.done: set[int] = set()
        self.barren: dict[int, Any] = {}
        self.copying: Any = None
        self._know_copies()

    def _know_copies(self) -> None:
        """Know each copy with its original, which the memo keeps alive."""
        kept = self.memo.get(id(self.memo), [])
        self.original_of = {id(self.memo[id(old)]): old for old in kept if self.memo.get(id(old), old) is not old}

    def is_original(self, value: Any) -> bool:
        """Whether an object was copied, or is a view of one that was."""
        if isinstance(value, tuple) or id(value) in self.original_of:
            return False
        view = isinstance(value, Tensor) and storage_of(value) in self.storages
        return view or self.memo.get(id(value), value) is not value

    def cut(self, value: Any) -> Any:
        """The same without ties: a copied object is changed in place; another that leads to an original is copied."""
        if value is None or isinstance(value, _LEAF) or id(value) in self.done:
            return value
        if isinstance(value, Tensor):
            value = self._tensor(value)
        elif self.is_original(value):
            return self.memo[id(value)]
        elif id(value) not in self.original_of:
            return self._shared(value)
        self.done.add(id(value))
        for holder in (value, attributes_of(value)):
            for key, item in self._entries(holder):
                if (now := self.cut(item)) is not item:
                    dict.__setitem__(holder, key, now) if isinstance(holder, dict) else holder.__setitem__(key, now)
        return value if isinstance(value, Tensor | nn.Module) else self._fixed(value)

    @staticmethod
    def _entries(holder: Any) -> list[tuple[Any, Any]]:
        if isinstance(holder, dict):
            return list(dict.items(holder))
        return list(enumerate(holder)) if isinstance(holder, list | deque) else []

    def _tensor(self, tensor: Tensor) -> Tensor:
        """A tensor of the copy: what an original was copied to, or the same view of that."""
        old = self.original_of.get(id(tensor), tensor)
        base = self.storages.get(storage_of(old) or ("", 0))
        if id(old) in self.registered or base is None:
            made: Tensor = self.memo.get(id(old), tensor)
            return made
        view = _same_part(old, base, self.memo[id(base)])
        return view if view is not None else self.memo.get(id(old), old.detach().clone())

    def _shared(self, value: Any) -> Any:
        """An object that deepcopy has not copied: the same, unless it leads to an original."""
        if path_to(value, self.is_original, barren=self.barren) is None:
            return value
        fixed = self._fixed(value)
        if fixed is not value:
            return fixed
        self.copying = value
        made = self._copied(value)
        self.copying = None
        self._know_copies()
        return value if made is value else self.cut(made)

    def _copied(self, value: Any) -> Any:
        """A copy by deepcopy; of an object with a lock, say, a copy of itself alone, in which the cut goes on."""
        known = len(self.memo)
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:
            for key in list(self.memo)[known:]:
                del self.memo[key]
        made = self.memo[id(value)] = copy.copy(value)
        self.memo.setdefault(id(self.memo), []).append(value)
        return made

    def _fixed(self, value: Any) -> Any:
        """Another one of an object that cannot be changed, if something in it must be; otherwise the same."""
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, _BOUND):
            owner, function = self.cut(value.__self__), self.cut(getattr(value, "__func__", None))
            return types.MethodType(function, owner) if function else getattr(owner, value.__name__)
        if isinstance(value, partial):
            return self._partial(value)
        if isinstance(value, _CACHED):
            return lru_cache(**value.cache_parameters())(self.cut(value.__wrapped__))
        if isinstance(value, weakref.ref):
            return weakref.ref(self.cut(value()))
        if isinstance(value, tuple | set | frozenset):
            now = list(map(self.cut, value))
            same = all(a is b for a, b in zip(now, value, strict=True))
            return value if same else type(value)(*now) if hasattr(value, "_fields") else type(value)(now)
        return value

    def _partial(self, value: "partial[Any]") -> "partial[Any]":
        old = value.func, value.args, value.keywords
        function, args, keywords = now = tuple(map(self.cut, old))
        if all(a is b for a, b in zip(now, old, strict=True)):
            return value
        made = type(value)(function, *args, **keywords)
        vars(made).update(attributes_of(value))
        return made

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """A function whose closure and defaults refer to the copy; what leads to no original stays shared."""
        if id(function) in self.functions:
            return self.functions[id(function)]
        closure = function.__closure__ or ()
        cells = tuple(self.cells.setdefault(id(cell), types.CellType()) for cell in closure)
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        self.functions[id(function)] = made
        for cell, old in zip(cells, closure, strict=True):
            cell.cell_contents = self.cut(content(old))
        made.__defaults__ = self.cut(function.__defaults__)
        made.__kwdefaults__ = {name: self.cut(item) for name, item in (function.__kwdefaults__ or {}).items()} or None
        made.__qualname__, made.__doc__, made.__module__ = function.__qualname__, function.__doc__, function.__module__
        vars(made).update({name: self.cut(item) for name, item in vars(function).items()})
        return made
