"""Extension of griffe: the doctest at the end of a docstring becomes its section of examples."""

import re
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Gives the first `>>>` that begins a line the heading that Google's style asks for."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring before it is parsed."""
        if obj.docstring:
            text = obj.docstring.value
            start = re.search(r"^>>> ", text, re.M)
            if start:
                code = re.sub(r"^(?=.)", "    ", text[start.start() :], flags=re.M)
                obj.docstring.value = f"{text[: start.start()]}Examples:\n{code}"
