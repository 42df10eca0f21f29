"""Picking a feature out of an output, and putting it back."""

import collections
import dataclasses
from typing import Any

import pytest
import torch
from helpers import refuses
from hypothesis import given
from hypothesis import strategies as st

from auxnas_layers import TapError
from auxnas_layers.features.outputs import find_feature, put_feature

Pair = collections.namedtuple("Pair", "first second")


class Plain(dict):
    """A dict subclass with attributes of its own."""

    note = "of the class"


@dataclasses.dataclass
class Box:
    feature: Any
    other: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    feature: Any
    other: Any = None


class Row(list):
    pass


class Triple(tuple):
    __slots__ = ()


@dataclasses.dataclass
class ModelOutput(collections.OrderedDict):
    """Both an ordered dict and a dataclass, kept alike, as in transformers."""

    feature: Any = None
    other: Any = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            super().__setitem__(field.name, getattr(self, field.name))

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


X = torch.ones(2, 3)
CONTAINERS = {
    "tuple": (lambda feature, other: (other, feature), 1),
    "list": (lambda feature, other: [other, feature], 1),
    "list subclass": (lambda feature, other: Row([feature, other]), 0),
    "tuple subclass": (lambda feature, other: Triple([other, other, feature]), 2),
    "namedtuple": (Pair, 0),
    "dict": (lambda feature, other: {"x": feature, 7: other}, "x"),
    "dict with numbers": (lambda feature, other: {"x": other, 7: feature}, 7),
    "dict subclass": (lambda feature, other: Plain(x=feature, y=other), "x"),
    "ordered dict": (lambda feature, other: collections.OrderedDict(y=other, x=feature), "x"),
    "default dict": (lambda feature, other: collections.defaultdict(list, x=feature, y=other), "x"),
    "dataclass": (Box, "feature"),
    "frozen dataclass": (Frozen, "feature"),
    "model output": (ModelOutput, "feature"),
}


def entries(output):
    """The entries of one container by key."""
    if isinstance(output, dict):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_feature_is_found_and_put_into_a_copy_of_its_container(kind):
    make, key = CONTAINERS[kind]
    other, new = object(), torch.zeros(2, 3)
    output = make(X, other)
    for select in (None, key, (key,)):
        path, feature = find_feature(output, select)
        assert path == (key,) and feature is X
    if isinstance(output, Plain):
        output.note = "of the object"
    changed = put_feature(output, (key,), new)
    assert type(changed) is type(output) and changed is not output
    assert list(entries(changed)) == list(entries(output))
    for name, value in entries(output).items():
        assert value is (X if name == key else other)
        assert entries(changed)[name] is (new if name == key else other)
    if isinstance(output, Plain):
        assert changed.note == "of the object"
    if isinstance(output, collections.defaultdict):
        assert changed.default_factory is list
    if isinstance(output, ModelOutput):
        assert changed.feature is new and output.feature is X and changed.other is other


@given(st.lists(st.sampled_from(list(CONTAINERS)), max_size=4), st.sampled_from([None, 3, "text", X.long(), X[0]]))
def test_a_feature_is_found_and_put_at_any_depth(kinds, other):
    levels, path = [X], ()
    for kind in kinds:
        make, key = CONTAINERS[kind]
        levels.append(make(levels[-1], other))
        path = (key, *path)
    output, new = levels[-1], torch.zeros(2, 3)
    found, feature = find_feature(output, None)
    assert found == path and feature is X
    if path:
        assert find_feature(output, path)[1] is X
    changed = put_feature(output, path, new)
    assert find_feature(changed, None)[1] is new and find_feature(output, None)[1] is X
    for key, level in zip(path, reversed(levels[1:]), strict=True):
        assert type(changed) is type(level) and changed is not level
        for name, value in entries(level).items():
            if name != key:
                assert value is other and entries(changed)[name] is other
        changed = entries(changed)[key]
    assert changed is new


def test_other_branches_of_an_output_are_shared_not_copied():
    branch = {"deep": [X.long()]}
    output = {"a": (X, branch), "b": branch}
    changed = put_feature(output, ("a", 0), X + 1)
    assert changed["b"] is branch and changed["a"][1] is branch


def test_results_of_torch_functions_keep_their_type():
    output = torch.max(torch.randn(2, 3, 4), dim=2)
    path, feature = find_feature(output, None)
    assert path == (0,) and feature is output[0]
    changed = put_feature(output, path, X)
    assert type(changed) is type(output) and changed.values is X and changed.indices is output.indices


def test_one_tensor_is_its_own_feature():
    path, feature = find_feature(X, None)
    new = torch.zeros(2, 3)
    assert path == () and feature is X and put_feature(X, (), new) is new


def test_tensors_that_cannot_be_fused_are_no_choice():
    path, feature = find_feature({"ids": X.long(), "length": X[0], "loss": X.sum(), "x": X, "mask": X > 0}, None)
    assert path == ("x",) and feature is X


@pytest.mark.parametrize(
    "output, path",
    [
        ((X, X), (0,)),
        ((X, (X, X)), (0,)),  # what an LSTM returns
        ((None, 7, X.long(), X, X), (3,)),
        (((X, X), X), (0, 0)),
        ((None, [X], [X, X]), (1, 0)),
        (Pair({"n": 3}, {"x": (X, X)}), (1, "x", 0)),
        ([(X, X)], (0, 0)),
        (Box((X, X)), ("feature", 0)),
    ],
    ids=str,
)
def test_of_a_tuple_the_first_feature_is_taken(output, path):
    assert find_feature(output, None)[0] == path


def test_a_select_is_for_the_mode_that_returns_several():
    """Such as auxiliary outputs in train mode: the same tap is right in both modes."""
    assert find_feature({"out": X, "aux": X}, "out")[0] == ("out",)
    assert find_feature(X, "out") == ((), X)


FUSED = "a feature is a dense floating-point tensor, (batch, ..., channels)"


def choose(select):
    return (
        f"choose one by Tap(..., primary_select={select!r}), or aux_select={select!r} if the layer is the auxiliary's"
    )


@pytest.mark.parametrize(
    "output, select, message",
    [
        ([X, X], None, f"returns several tensors (0: (2, 3), 1: (2, 3)); {choose(0)}"),
        (
            {"a": {"b": X}, "c": X[None]},
            None,
            f"returns several tensors (('a', 'b'): (2, 3), 'c': (1, 2, 3)); {choose(('a', 'b'))}",
        ),
        (Pair(X[0], [X, X]), None, f"returns several tensors ((1, 0): (2, 3), (1, 1): (2, 3)); {choose((1, 0))}"),
        (X.long(), None, f"returns no feature but a torch.int64 tensor of 2 dimensions; {FUSED}"),
        ((X, X.long()), 1, f"returns no feature but a torch.int64 tensor of 2 dimensions; {FUSED}"),
        (X > 0, None, f"returns no feature but a torch.bool tensor of 2 dimensions; {FUSED}"),
        (X[0], None, f"returns no feature but a torch.float32 tensor of 1 dimensions; {FUSED}"),
        ({"x": X[0]}, "x", f"returns no feature but a torch.float32 tensor of 1 dimensions; {FUSED}"),
        (X.sum(), None, f"returns no feature but a torch.float32 tensor of 0 dimensions; {FUSED}"),
        (X.to_sparse(), None, f"returns no feature but a nested or sparse one; {FUSED}"),
        ((X, 1), 1, "returns no feature at 1; it returns a tuple with 0"),
        ((X, X), 2, "returns no feature at 2; it returns a tuple with 0, 1"),
        ({"a": {"b": X}, "c": X}, "b", "returns no feature at 'b'; it returns a dict with ('a', 'b'), 'c'"),
        ({"a": {"b": X}}, "a", "returns no feature at 'a'; it returns a dict with ('a', 'b')"),
        ({"a": {"b": X}}, ("a", "c"), "returns no feature at ('a', 'c'); it returns a dict with ('a', 'b')"),
        (Box(X), "features", "returns no feature at 'features'; it returns a Box with 'feature'"),
        (None, None, "returns no feature; it returns a NoneType with no tensor"),
        ((), None, "returns no feature; it returns a tuple with no tensor"),
        ({"n": 3}, "n", "returns no feature at 'n'; it returns a dict with no tensor"),
        ((X.long(), X[0]), None, "returns no feature; it returns a tuple with 0, 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outputs_without_one_feature_are_described(output, select, message):
    refuses(TapError, message, find_feature, output, select)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # older torch says so once
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_a_nested_tensor_is_no_feature(layout):
    nested = torch.nested.nested_tensor([X, X], layout=layout)
    refuses(TapError, f"returns no feature but a nested or sparse one; {FUSED}", find_feature, nested, None)
