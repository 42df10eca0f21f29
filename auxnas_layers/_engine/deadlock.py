"""Noticing that the networks of a lock-step wait for each other for ever: one stands at a tap, under a lock, say."""

import dis
import functools
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from inspect import getattr_static
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakSet

from torch import nn

from auxnas_layers._engine.workers import WORKER
from auxnas_layers.errors import AuxNASError

LOOK = 1.0
"""Seconds between two looks at a thread for which another one waits."""
SURELY = 10.0
"""Seconds after which a thread that wants a lock without a known owner is taken for stuck."""
PERHAPS = 300.0
"""The same where the program has other threads, one of which may hold the lock."""
_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
_IMPORTS = "<frozen importlib._bootstrap"
_ROOTS = ("LOAD_FAST", "LOAD_NAME", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLASSDEREF")
_PASSED = {
    *("CACHE", "PRECALL", "CALL", "PUSH_NULL", "COPY", "SWAP", "NOP"),
    *("BEFORE_WITH", "SETUP_WITH", "LOAD_SPECIAL", "LOAD_CONST", "KW_NAMES"),
}


class Want(NamedTuple):
    """A lock for which a thread waits.

    Args:
        lock: The lock.
        name: How messages name it.
        place: File and line where the thread wants it.
        owner: Ident of the thread that holds it; None if that is unknown.
    """

    lock: Any
    name: str
    place: str
    owner: int | None


def patient(inbox: "queue.SimpleQueue[Any]", thread: threading.Thread, waiting: Callable[[], Iterable[int]]) -> Any:
    """Wait for what a thread will put in a queue, as long as it can.

    Args:
        inbox: The queue.
        thread: The thread.
        waiting: Idents of the threads that wait for it.

    Raises:
        AuxNASError: If it waits for a lock that one of these holds.
    """
    since, last = time.monotonic(), None
    while True:
        try:
            return inbox.get(timeout=LOOK)
        except queue.Empty:
            want = _wanted(sys._current_frames().get(thread.ident or 0))
        if want is None or want != last:
            since, last = time.monotonic(), want
        if want and (want.owner in waiting() if want.owner else time.monotonic() - since >= _long(thread, waiting())):
            raise AuxNASError(
                f"the networks wait for each other: one wants {want.name} at {want.place}, while the other holds it "
                "and waits at a tap. Take a lock around the call of the wrapper and not inside a forward; import "
                "modules at the top of a file, and call the wrapper from a function"
            )


def _long(thread: threading.Thread, waiting: Iterable[int]) -> float:
    """How long to wait for a lock without a known owner."""
    ours = {thread.ident, *waiting}
    others = [one for one in threading.enumerate() if one.ident not in ours and one.name != WORKER]
    return PERHAPS if others else SURELY


def _wanted(frame: FrameType | None) -> Want | None:
    """The lock for which a thread waits that stands in this frame, as far as Python tells."""
    if frame is None:
        return None
    if frame.f_code.co_filename.startswith(_IMPORTS):
        module = frame.f_locals.get("self")
        owner, name = getattr(module, "owner", None), getattr(module, "name", None)
        return Want(module, f"the import lock of {name!r}", _place(frame), owner) if owner and name else None
    if frame.f_code.co_filename == threading.__file__ and frame.f_code.co_name != "__enter__":
        return None  # waits for an event or another thread, which may come
    lock, name = _operand(frame)
    if isinstance(lock, _RLOCK):
        owner = re.search(r"owner=(\d+)", repr(lock))
        return Want(lock, f"the lock {name}", _place(frame), int(owner[1])) if owner else None
    return Want(lock, f"the lock {name}", _place(frame), None) if isinstance(lock, _LOCK) and lock.locked() else None


def _operand(frame: FrameType) -> tuple[Any, str]:
    """What the current instruction of a frame is applied to, such as ``self.lock`` in ``with self.lock:``."""
    before = [one for one in dis.get_instructions(frame.f_code) if one.offset <= frame.f_lasti]
    names: list[str] = []
    for instruction in reversed(before):
        if instruction.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
            names.insert(0, instruction.argval)
        elif instruction.opname.startswith(_ROOTS):
            root = instruction.argval
            break
        elif instruction.opname not in _PASSED:
            return None, ""
    else:
        return None, ""
    if not isinstance(root, str):  # several at once, in newer bytecode
        root = root[-1]
    if names and names[-1] in ("acquire", "__enter__"):
        del names[-1]
    value = frame.f_locals.get(root, frame.f_globals.get(root))
    for name in names:
        value = getattr_static(value, name, None)
    return value, ".".join([root, *names])


def _place(frame: FrameType) -> str:
    """The first line below that is neither of Python's imports nor of its threads."""
    here: FrameType | None = frame
    while here and here.f_code.co_filename.startswith((_IMPORTS, threading.__file__)):
        here = here.f_back
    here = here or frame
    return f"{here.f_code.co_filename}:{here.f_lineno}"


_UNLOCKED: "WeakSet[nn.Module]" = WeakSet()


def unlock_cached_properties(net: nn.Module) -> None:
    """Take the lock from `functools.cached_property` in the classes of a network's modules, as Python 3.12 does.

    Before, all objects of a class have one lock for each such property; two networks that share the class would wait
    for each other where one reaches a tap while it computes the property.
    """
    if sys.version_info >= (3, 12) or net in _UNLOCKED:
        return
    _UNLOCKED.add(net)
    kinds = {kind for module in net.modules() for kind in type(module).__mro__}
    for value in [value for kind in kinds for value in vars(kind).values()]:
        if isinstance(value, functools.cached_property):
            value.lock = nullcontext()  # type: ignore[attr-defined]
