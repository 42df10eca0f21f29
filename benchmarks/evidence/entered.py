"""A method from outside: a class in a file of its own, named as ``path/to/mine.py:Mine``."""

import importlib.util
from functools import lru_cache
from pathlib import Path

from methods import Method
from study import RESULTS

FILE = RESULTS.parents[1] / "data" / "entered.jsonl"
"""Results of such methods, beside those that are published."""


@lru_cache
def enter(name: str) -> Method:
    """The method that a file defines; the file may import all modules of this folder."""
    path, _, title = name.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        raise ValueError(f"a method is a known name or path/to/mine.py:Mine, of a file that exists; found {name!r}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, title, None)
    if not (isinstance(made, type) and issubclass(made, Method)):
        raise ValueError(
            f"{path} defines a class {title} that derives from methods.Method; found {made!r}. "
            f"Write: class {title}(Method)"
        )
    return made()
