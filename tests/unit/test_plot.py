"""The pictures."""

import pytest
from matplotlib.figure import Figure
from zoo import Cnn

from auxnas_layers import Architecture, AuxNASWrapper, Edge
from auxnas_layers.plot import plot_edges, plot_gates


def test_gates_of_an_auxiliary_that_has_left_are_drawn_as_far_as_they_go():
    nets, taps = {"a": Cnn(), "b": Cnn()}, {"a": ["layer1"], "b": ["layer1"]}
    wrapper = AuxNASWrapper(Cnn(), nets, taps)
    history = [(0.0, wrapper.architecture())]
    wrapper.remove_aux_("b", allow_open=True)
    history.append((1.0, wrapper.architecture()))
    lengths = [len(line.get_xdata()) for line in plot_gates(history, Figure().subplots()).lines]
    assert sorted(lengths) == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="there is no history"):
        plot_gates([])


def test_names_with_to_in_them_can_be_drawn():
    edges = (Edge("image_to_text_to_primary", 0, 0, 0.5, True), Edge("primary_to_image_to_text", 0, 0, 0.0, False))
    texts = [text.get_text() for text in plot_edges(Architecture(edges), None).texts]
    assert "image_to_text" in texts and "primary" in texts
