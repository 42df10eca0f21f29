"""All errors and warnings; each error is an `AuxNASError` and a builtin error, so either can be caught."""

from collections.abc import Sequence


class AuxNASError(Exception):
    """Base class of all errors in this package."""


class TapError(AuxNASError, ValueError):
    """A tap names no layer, or its layer returns no feature that can be fused."""


class LayoutError(AuxNASError, ValueError):
    """The axes of a feature are unknown, or two features cannot be aligned."""


class SearchError(AuxNASError, ValueError):
    """A search, search space, gate, progress or architecture is not valid."""


class LabelError(AuxNASError, ValueError):
    """Labels, a mask of known labels, or pools or loaders of samples do not fit together."""


class ExportError(AuxNASError, RuntimeError):
    """A network cannot be exported or traced in its current state."""


class AuxNASWarning(UserWarning):
    """Base class of all warnings in this package: something will probably go wrong later; each is given once."""


class AuxiliaryWarning(AuxNASWarning):
    """An auxiliary task does not seem to help the primary one."""


def bullets(headline: str, problems: Sequence[str]) -> str:
    """One message for all problems, so that the user can fix them in one go.

    >>> print(bullets("2 problems:", ["this", "that"]))
    2 problems:
      - this
      - that
    """
    return "\n".join([headline, *(f"  - {problem}" for problem in problems)])
