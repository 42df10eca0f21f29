"""Edges and architectures, as data, as tables and as JSON."""

import copy
import json
import pickle
from functools import partial

import pytest
import torch
from helpers import refuses
from hypothesis import given
from hypothesis import strategies as st
from pairs import searched
from zoo import Cnn, Conv1d

from auxnas_layers import MTLNAS, Architecture, AuxNASWrapper, Edge, FixedArchitecture, NDDRFusion, SearchError
from auxnas_layers.search import Direction, SigmoidGate

names = st.text('a_é"\\\n 日', max_size=20)  # of all letters there are it takes seconds to make a table
directions = st.builds(Direction, names, st.booleans())
edges = st.builds(Edge, directions, st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1), st.booleans())


@given(st.lists(edges, max_size=6))
def test_an_architecture_survives_json(found):
    architecture = Architecture(tuple(found))
    back = Architecture.from_dict(json.loads(json.dumps(architecture.to_dict())))
    assert back == architecture and hash(back) == hash(architecture)
    assert back.to_dict() == architecture.to_dict()
    assert list(back) == found and len(back) == len(found)
    for direction in {edge.direction for edge in found} | {"none"}:
        opened = [edge for edge in found if edge.open and edge.direction == direction]
        assert list(back.open_edges(direction)) == opened


GOOD = {"direction": "aux_to_primary", "source": 0, "target": 1, "gate": 0.5, "open": True}
FIELDS = (
    "the edges of an architecture have the fields direction, source, target, gate, open: a string, two numbers of "
    "taps, a number in [0, 1] and true or false; found"
)


@pytest.mark.parametrize(
    "data, odd",
    [
        ({"edges": [{}]}, [{}]),
        ({"edges": [{**GOOD, "weight": 1}]}, [{**GOOD, "weight": 1}]),
        ({"edges": [GOOD, {"source": 0}, GOOD, {"target": 0}]}, [{"source": 0}, {"target": 0}]),
        ({"edges": [{k: v for k, v in GOOD.items() if k != "gate"}]}, [{k: v for k, v in GOOD.items() if k != "gate"}]),
    ],
    ids=str,
)
def test_a_malformed_dict_is_an_error_that_lists_every_odd_edge(data, odd):
    refuses(SearchError, "\n".join([FIELDS, *(f"  - edge {edge!r}" for edge in odd)]), Architecture.from_dict, data)


@pytest.mark.parametrize(
    "data", [GOOD, {}, {"edge": []}, {"edges": [3]}, {"edges": [list(GOOD)]}, {"edges": None}, [GOOD]], ids=str
)
def test_something_that_holds_no_edges_at_all_is_an_error_of_this_package_too(data):
    with pytest.raises(SearchError):
        Architecture.from_dict(data)


def test_the_table_lines_up():
    architecture = Architecture(
        (
            Edge("aux_to_primary", 0, 1, 0.25, True),
            Edge("primary_to_longer", 10, 123, 1.0, True, "layer3", "deep.1"),
            Edge("aux_to_primary", 3, 4, 0.0, False),
            Edge("aux_to_primary", 3, 4, 0.5, False),
        )
    )
    assert str(architecture) == (
        "direction          source  target    gate\n"
        "aux_to_primary     0       1       0.2500\n"
        "primary_to_longer  layer3  deep.1  1.0000\n"
        "aux_to_primary     3       4       closed\n"
        "aux_to_primary     3       4       closed"
    )
    assert str(Architecture(())) == "direction  source  target  gate"


def test_an_edge_prints_on_one_line():
    assert str(Edge("aux_to_primary", 0, 1, 0.123456, True)) == "aux_to_primary 0 -> 1 (open, gate 0.1235)"
    assert str(Edge("primary_to_aux", 2, 2, 0.0, False)) == "primary_to_aux 2 -> 2 (closed)"
    named = Edge("primary_to_aux", 2, 3, 0.0, False, "layer1.0", "2")
    assert str(named) == "primary_to_aux 'layer1.0' -> '2' (closed)"


def test_an_architecture_moves_to_other_networks_by_number_whatever_its_layers_are_called():
    first = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"])
    nets = [torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 1)) for _ in range(2)]
    second = AuxNASWrapper(*nets, ["0", "2"])
    first.gates["aux_to_primary"].set_([0.5, 0.0, 0.25])
    second.load_architecture(first.architecture())
    assert second.architecture() == first.architecture()
    assert [edge.ends for edge in second.architecture()][:2] == [("0", "0"), ("0", "2")]


def test_an_architecture_without_names_of_layers_is_read_too():
    """As files of version 0.1 are."""
    data = {"direction": "depth_to_primary", "source": 0, "target": 1, "gate": 0.5, "open": True}
    (edge,) = Architecture.from_dict({"edges": [data]})
    assert (edge.direction.aux, edge.direction.inward, edge.ends) == ("depth", True, ("0", "1"))


def test_a_direction_is_its_string_also_in_copies_and_pickles():
    direction = Direction("depth", inward=False)
    assert direction == "primary_to_depth" and hash(direction) == hash("primary_to_depth")
    for same in (copy.deepcopy(direction), pickle.loads(pickle.dumps(direction)), Direction.read("primary_to_depth")):
        assert (same, same.aux, same.inward, same.source, same.target) == (
            direction,
            "depth",
            False,
            "primary",
            "depth",
        )
    assert type(json.loads(json.dumps({"direction": direction}))["direction"]) is str
    with pytest.raises(SearchError, match="a direction is 'aux_to_primary' or .* found 'sideways'"):
        Edge("sideways", 0, 0)


def test_architectures_of_another_search_space_are_refused_whole():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"])
    before = wrapper.architecture()
    other = Architecture((Edge("aux_to_primary", 0, 0, 0.5, True), Edge("depth_to_primary", 0, 1, 0.5, True)))
    with pytest.raises(SearchError) as error:
        wrapper.load_architecture(other)
    assert "depth_to_primary 0 -> 1: only in the architecture" in str(error.value)
    assert "primary_to_aux 'layer2' -> 'layer2': only in the wrapper" in str(error.value)
    assert wrapper.architecture() == before


def test_what_is_no_architecture_says_how_to_read_one():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), ["layer1"])
    data = wrapper.architecture().to_dict()
    for call in (wrapper.load_architecture, FixedArchitecture):
        with pytest.raises(SearchError, match=r"found dict for an Architecture; Architecture.from_dict\(...\)"):
            call(data)


@pytest.mark.parametrize("field, value", [("gate", "x"), ("gate", 1.5), ("source", 0.5), ("target", -1), ("open", 1)])
def test_an_edge_of_another_kind_is_not_read(field, value):
    data = AuxNASWrapper(Cnn(), Cnn(), ["layer1"]).architecture().to_dict()
    data["edges"][1][field] = value
    with pytest.raises(SearchError, match="the fields direction, source, target, gate, open: a string, .*\n  - edge"):
        Architecture.from_dict(data)


SOFT = partial(SigmoidGate, evaluation="hard")


def test_architectures_move_between_wrappers_that_have_as_many_taps():
    wrapper = searched()
    saved = json.dumps(wrapper.architecture().to_dict())
    other = AuxNASWrapper(Conv1d(), Conv1d(4), ["a", "b"], search=MTLNAS(gate=SOFT), fusion=NDDRFusion)
    other.load_architecture(Architecture.from_dict(json.loads(saved)))
    assert [edge.gate for edge in other.architecture()] == pytest.approx([edge.gate for edge in wrapper.architecture()])
    with pytest.raises(SearchError, match="primary_to_aux 'layer2' -> 'layer2': only in the arch"):
        AuxNASWrapper(Conv1d(), Conv1d(4), ["a"], search=MTLNAS()).load_architecture(wrapper.architecture())
