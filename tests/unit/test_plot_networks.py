"""The picture of two networks, their edges, and what the export drops."""

from itertools import combinations

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import nn

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, FixedArchitecture
from auxnas_layers.plot import plot_networks
from auxnas_layers.plot.drawing import INTO_AUX, INTO_PRIMARY

LONG = "vision_model_encoder_layers_layer_norm_after_everything"


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


class Deep(nn.Module):
    def __init__(self, name, count):
        super().__init__()
        self.body = nn.ModuleDict({f"{name}{i}": nn.Linear(4, 4) for i in range(count)})

    def forward(self, x):
        for layer in self.body.values():
            x = layer(x)
        return x


def taps(count, primary="layer", aux="block"):
    return [(f"body.{primary}{i}", f"body.{aux}{i}") for i in range(count)]


def wrapped(count, primary="layer", aux="block", search=None):
    nets = Deep(primary, count), Deep(aux, count)
    return AuxNASWrapper(*nets, taps(count, primary, aux), search=search or AuxNAS(), example_inputs=torch.ones(2, 4))


def three():
    auxes = {"depth": Deep(LONG, 12), "segmentation": Deep("layer", 4), "normals": Deep("b", 1)}
    sides = {"depth": taps(12, "p", LONG), "segmentation": taps(4, "p", "layer"), "normals": taps(1, "p", "b")}
    return AuxNASWrapper(Deep("p", 12), auxes, sides)


MADE = {
    "one": lambda: wrapped(1),
    "two": lambda: wrapped(2),
    "eight": lambda: wrapped(8),
    "sixteen": lambda: wrapped(16, LONG, "stages_3_blocks_"),
    "three": three,
    "both": lambda: wrapped(4, search=MTLNAS()),
}


def arrows(ax, colour):
    """The edges of one direction."""
    return [
        one
        for one in ax.patches
        if isinstance(one, FancyArrowPatch) and one.get_edgecolor()[:3] == pytest.approx(colours(colour))
    ]


def colours(name):
    return plt.matplotlib.colors.to_rgb(name)


def frames(ax):
    return [one for one in ax.patches if isinstance(one, FancyBboxPatch)]


def hatched(ax):
    return [one for one in ax.patches if isinstance(one, Rectangle) and one.get_hatch()]


def drawn(ax):
    """Where each text is, those of the legend too."""
    ax.figure.canvas.draw()
    legend = ax.get_legend()
    texts = [*ax.texts, *legend.get_texts(), legend.get_title()]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]


def assert_apart(ax):
    found = drawn(ax)
    for text, box in found:
        inside = ax.figure.bbox
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1, text
    for (one, box), (other, its) in combinations(found, 2):
        assert not box.overlaps(its), (one, other)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_texts_do_not_overlap_and_stay_in_their_boxes(make):
    ax = plot_networks(make())
    assert_apart(ax)
    boxes = [one.get_window_extent() for one in ax.patches if isinstance(one, Rectangle) and not one.get_hatch()]
    layers = [box for text, box in drawn(ax) if "." in text or "…" in text]
    assert len(layers) == len(boxes)
    for text in layers:
        assert any(box.x0 <= text.x0 and text.x1 <= box.x1 and box.y0 <= text.y0 and text.y1 <= box.y1 for box in boxes)
    bottom = min(one.get_window_extent().y0 for one in frames(ax))
    assert ax.get_legend().get_window_extent().y1 <= bottom


def test_in_small_axes_everything_gets_smaller():
    figure = plt.figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    figure.draw_without_rendering()
    ax = plot_networks(wrapped(16, LONG), axes[0])
    assert_apart(ax)
    assert max(text.get_fontsize() for text in ax.texts) < 8


def test_an_edge_is_as_thick_as_its_gate_and_a_closed_one_dotted():
    wrapper = wrapped(2)
    wrapper.gates["aux_to_primary"].set_([0.0, 0.5, 1.0])
    ax = plot_networks(wrapper)
    inward, outward = arrows(ax, INTO_PRIMARY), arrows(ax, INTO_AUX)
    assert [one.get_linestyle() for one in inward] == [":", "solid", "solid"]
    assert [one.get_linewidth() for one in inward] == pytest.approx([0.8, 1.3, 2.2])
    assert [one.get_linewidth() for one in outward] == pytest.approx([2.2] * 3)
    assert inward[0].get_alpha() < 1
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "into the primary",
        "into an auxiliary",
        "closed",
    ]


def test_arrows_lead_from_source_to_target():
    ax = plot_networks(wrapped(2))
    for colour, inward in ((INTO_PRIMARY, True), (INTO_AUX, False)):
        ends = [one.get_path().vertices[[0, -1]] for one in arrows(ax, colour)]
        assert ends
        for one in arrows(ax, colour):
            (start, _), (end, _) = one._posA_posB
            assert (end < start) == inward


def test_the_export_drops_what_is_hatched():
    ax = plot_networks(wrapped(2))
    (frame,), (dropped,) = frames(ax), hatched(ax)
    assert frame.get_x() + frame.get_width() < dropped.get_x()
    names = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert names["deployed"] == names["primary"] < dropped.get_x() < names["aux"] == names["dropped at export"]


@pytest.mark.parametrize(
    "search, kept, shown",
    [
        (AuxNAS(), 1, {"deployed", "dropped at export"}),
        (AuxG(), 1, {"deployed", "dropped at export"}),
        (MTLNAS(), 2, {"deployed"}),
        (FixedArchitecture(wrapped(2).architecture()), 2, {"deployed"}),
    ],
    ids=["AuxNAS", "AuxG", "MTLNAS", "FixedArchitecture"],
)
def test_both_networks_are_kept_where_edges_into_the_primary_stay(search, kept, shown):
    ax = plot_networks(wrapped(2, search=search))
    assert len(frames(ax)) == kept and len(hatched(ax)) == 2 - kept
    assert {text.get_text() for text in ax.texts if text.get_style() == "italic"} == shown


def test_each_auxiliary_is_drawn_beside_the_layers_of_the_primary_that_it_taps():
    ax = plot_networks(three())
    columns = {}
    for text in ax.texts:
        columns.setdefault(round(text.get_position()[0], 6), []).append(text.get_text())
    shown = [[*columns[place][1:3], len(columns[place]) - 4] for place in sorted(columns)]
    roles = ["primary", "depth", "primary", "normals", "primary", "segmentation"]
    assert shown == [[role, "Deep", count] for role, count in zip(roles, [12, 12, 1, 1, 4, 4], strict=True)]


def test_what_is_no_wrapper_is_an_error_that_says_what_to_draw():
    message = r"plot_networks takes an AuxNASWrapper; found Architecture. .* there is plot_edges\(architecture\)"
    with pytest.raises(TypeError, match=message):
        plot_networks(wrapped(1).architecture())
