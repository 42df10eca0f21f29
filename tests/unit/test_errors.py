"""The error types: each is one of this package's and a builtin."""

import pytest

from auxnas_layers import AuxiliaryWarning, AuxNASError, ExportError, LabelError, LayoutError, SearchError, TapError


@pytest.mark.parametrize(
    "error, builtin",
    [
        (TapError, ValueError),
        (LayoutError, ValueError),
        (SearchError, ValueError),
        (LabelError, ValueError),
        (ExportError, RuntimeError),
    ],
)
def test_each_error_can_be_caught_by_either_of_its_kinds(error, builtin):
    assert issubclass(error, AuxNASError) and issubclass(error, builtin)
    assert not issubclass(AuxNASError, builtin)


def test_a_warning_can_be_silenced_as_those_of_users_are():
    assert issubclass(AuxiliaryWarning, UserWarning)
