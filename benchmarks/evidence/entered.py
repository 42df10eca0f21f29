"""A method from outside: a class in a file of its own, named as ``mine``, or ``path/to/mine.py:Mine``."""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

from methods import Method
from study import RESULTS

FILE = RESULTS.parents[1] / "data" / "entered.jsonl"
"""Results of such methods, beside those that are published."""


@lru_cache
def enter(name: str) -> Method:
    """The method that a file defines; the file may import all modules of this folder.

    Args:
        name: The file, without ``.py`` if it has a single method, such as ``mine``; or ``path/to/mine.py:Mine``.

    Raises:
        ValueError: If there is no such file, or no such class in it.
    """
    place, _, title = name.partition(":")
    path = Path(place if place.endswith(".py") else f"{place}.py")
    if not path.is_file():
        raise ValueError(
            f"a method is a known name, or a file that exists, as mine for mine.py or path/to/mine.py:Mine; "
            f"found {name!r}"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = _methods(module)
    title = title or (next(iter(found)) if len(found) == 1 else "")
    if title not in found:
        what = f"a class {title}" if title else "one class"
        raise ValueError(
            f"{path} defines {what} that derives from methods.Method; found {list(found) or 'none'}. "
            f"Write: class {title or 'Mine'}(Method)" + f", or say which: {path}:Mine" * (len(found) > 1)
        )
    return found[title]()


def _methods(module: Any) -> dict[str, type[Method]]:
    """The methods that a module defines itself."""
    return {
        name: made
        for name, made in vars(module).items()
        if isinstance(made, type) and issubclass(made, Method) and made.__module__ == module.__name__
    }
