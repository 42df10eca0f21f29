"""The error types: each is an `AuxNASError` and a builtin, so either can be caught."""

from collections.abc import Sequence


class AuxNASError(Exception):
    """Base class of the errors that this package raises of taps, layouts, searches and exports."""


class TapError(AuxNASError, ValueError):
    """A tap does not name, or does not give, a feature that can be fused."""


class LayoutError(AuxNASError, ValueError):
    """The axes of a feature are unknown, or two features cannot be aligned."""


class SearchError(AuxNASError, ValueError):
    """A search space, gate, progress or architecture is not a valid one."""


class ExportError(AuxNASError, RuntimeError):
    """A network cannot be taken out, or recorded, as it is."""


class AuxiliaryWarning(UserWarning):
    """An auxiliary task does not seem to help the primary one."""


def bullets(headline: str, problems: Sequence[str]) -> str:
    """One message for all problems found, so that they can be mended in one go.

    >>> print(bullets("2 problems:", ["this", "that"]))
    2 problems:
      - this
      - that
    """
    return "\n".join([headline, *(f"  - {problem}" for problem in problems)])
