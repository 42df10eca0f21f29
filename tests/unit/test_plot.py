"""The pictures."""

from itertools import combinations

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from zoo import Cnn

from auxnas_layers import Architecture, AuxNASWrapper, DepthLimited, Edge
from auxnas_layers.plot import plot_edges, plot_gates


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


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


def architecture(**auxes):
    """Edges of both directions between the layers of the primary and of each auxiliary, every third of them closed."""
    edges = []
    for aux, (primary, own) in auxes.items():
        pairs = DepthLimited().edges(len(primary), to_primary=True)
        for i, (s, t) in enumerate(pairs):
            gate = (i % 3) / 2
            edges.append(Edge(f"{aux}_to_primary", s, t, gate, gate > 0, own[s], primary[t]))
            edges.append(Edge(f"primary_to_{aux}", s, t, 1.0, True, primary[s], own[t]))
    return Architecture(tuple(edges))


def named(pattern, count):
    return [pattern.format(i) for i in range(count)]


DEEP = named("vision_model.encoder.layers.{}.layer_norm_after_everything", 12)
BLOCKS, LAYERS = named("blocks.{}", 16), named("layer{}", 4)
MANY = {
    "two": architecture(aux=(LAYERS[:2], LAYERS[:2])),
    "twelve": architecture(depth=(BLOCKS[:12], DEEP)),
    "sixteen": architecture(aux=(named("stages.3.blocks.{}", 16), BLOCKS)),
    "three auxiliaries": architecture(
        depth=(BLOCKS[:12], DEEP), segmentation=(BLOCKS[2:6], LAYERS), normals=(LAYERS[:1], DEEP[:1])
    ),
}


def words(ax):
    """Every text that is drawn, and where."""
    ax.figure.canvas.draw()
    drawn = [text for text in [*ax.texts, *ax.get_legend().get_texts()] if text.get_text()]
    return {text: text.get_window_extent() for text in drawn}


def assert_readable(ax):
    found = words(ax)
    for text, box in found.items():
        inside = ax.figure.bbox
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1, text
    for (one, box), (other, its) in combinations(found.items(), 2):
        assert not box.overlaps(its), (one, other)


@pytest.mark.parametrize("edges", MANY.values(), ids=MANY)
def test_names_of_layers_are_readable_and_do_not_overlap(edges):
    ax = plot_edges(edges)
    assert_readable(ax)
    assert {text.get_fontsize() for text in ax.texts if text.get_text()} == {8.0}
    shown = {text.get_text() for text in ax.texts}
    short = {name for edge in edges for name in edge.ends if name not in DEEP}
    assert short and short <= shown and not shown & {str(i) for i in range(16)}


@pytest.mark.parametrize("edges", [MANY["two"], MANY["twelve"], MANY["sixteen"]], ids=["two", "twelve", "sixteen"])
def test_in_axes_that_are_given_names_get_shorter_or_smaller(edges):
    figure = plt.figure(figsize=(9, 7), layout="constrained")
    ax = plot_edges(edges, figure.subfigures(2, 1, height_ratios=(2, 3))[0].subplots(1, 2)[1])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert not any(box.overlaps(other) for box, other in combinations(boxes, 2))
    assert all(figure.bbox.width / 2 - 20 <= box.x0 and box.x1 <= figure.bbox.width for box in boxes)


def test_long_names_lose_what_all_have_and_then_their_middles():
    texts = [text.get_text() for text in plot_edges(MANY["twelve"]).texts]
    long = [text for text in texts if text.startswith("…")]
    assert len(long) == len(set(long)) == 12
    assert long[0].startswith("…0.") and long[11].startswith("…11.")
    assert all(text.endswith("_everything") for text in long)
    assert max(map(len, texts)) <= 24


def test_each_auxiliary_is_drawn_with_its_own_layers_of_the_primary():
    ax = plot_edges(architecture(a=(["first", "last"], LAYERS[:2]), b=(["last"], BLOCKS[:1])))
    columns = {}
    for text in ax.texts:
        if text.get_text():
            columns.setdefault(round(text.get_position()[0], 6), []).append(text.get_text())
    wanted = [["primary", "first", "last"], ["a", "layer0", "layer1"], ["primary", "last"], ["b", "blocks.0"]]
    assert [columns[place] for place in sorted(columns)] == wanted


def test_closed_edges_are_dotted_and_open_ones_as_thick_as_their_gates():
    ends = {"source_name": "a", "target_name": "b"}
    edges = [Edge("aux_to_primary", 0, 0, gate, gate > 0, **ends) for gate in (0.0, 0.5, 1.0)]
    drawn = [text.arrow_patch for text in plot_edges(Architecture(tuple(edges))).texts if not text.get_text()]
    assert [patch.get_linestyle() for patch in drawn] == [":", "solid", "solid"]
    assert [patch.get_linewidth() for patch in drawn] == [1, 1.5, 2.5]


def test_pictures_are_drawn_on_figures_of_their_own():
    edges = MANY["two"]
    figures = [plot_gates([(0.0, edges), (1.0, edges)]).figure, plot_edges(edges).figure, plot_edges(edges).figure]
    assert len(set(map(id, figures))) == 3
    ax = Figure().subplots()
    assert plot_gates([(0.0, edges), (1.0, edges)], ax) is ax and plot_edges(edges, ax) is ax
    assert plt.get_fignums() == [1, 2, 3]


def test_the_legend_of_gates_is_beside_them():
    ax = plot_gates([(0.0, MANY["three auxiliaries"]), (1.0, MANY["three auxiliaries"])])
    ax.figure.canvas.draw()
    legend = ax.get_legend()
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:2] == ["depth to primary: 33 gates, mean", "primary to depth: 33 gates, mean"] and len(names) == 6
    assert names[4] == "normals to primary"
    assert not ax.bbox.overlaps(legend.get_window_extent())
    assert legend.get_window_extent().x1 <= ax.figure.bbox.x1


def test_many_gates_are_thin_beside_their_mean():
    edges = MANY["sixteen"]
    count = len(edges) // 2
    lines = plot_gates([(0.0, edges), (1.0, edges)]).lines
    assert len(lines) == 2 * count + 2
    means = [line for line in lines if line.get_linewidth() > 2]
    inward = [edge.gate for edge in edges if edge.direction.inward]
    assert list(means[0].get_ydata()) == pytest.approx([sum(inward) / count] * 2)
    assert list(means[1].get_ydata()) == [1.0, 1.0]


def test_an_architecture_without_edges_can_be_drawn():
    assert not plot_edges(Architecture(())).texts
