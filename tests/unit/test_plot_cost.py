"""The picture of what a training step costs."""

from itertools import combinations

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from pairs import make

from auxnas_layers import AuxNAS, CrossTaskFusion
from auxnas_layers.export import Cost, CostReport
from auxnas_layers.plot import plot_cost


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def bars(ax):
    return dict(zip([label.get_text() for label in ax.get_yticklabels()], ax.patches, strict=True))


def test_bars_are_multiples_of_the_primary_and_add_up():
    cost = make(AuxNAS(), fusion=CrossTaskFusion).cost()
    ax = plot_cost(cost)
    widths = [bar.get_width() for bar in bars(ax).values()]
    assert list(bars(ax)) == ["primary", "auxiliary", "edges into the primary", "edges into the auxiliary"]
    assert widths[0] == 1 and all(widths)
    assert sum(widths) == pytest.approx(cost.training.flops / cost.primary.flops)
    assert f"{sum(widths):.2f} times" in ax.get_title()


def test_only_the_primary_is_not_hatched():
    assert [bool(bar.get_hatch()) for bar in plot_cost(make().cost()).patches][:2] == [False, True]


def test_fusions_that_compute_without_edges_have_a_bar_of_their_own():
    cost = make().cost()
    found = bars(plot_cost(cost))
    rest = cost.edges - cost.inward - cost.outward
    assert rest > 0 and found["fusions without edges"].get_width() == pytest.approx(rest / cost.primary.flops)


def test_texts_do_not_overlap():
    for flops in (100, 123_456_789):
        report = CostReport(Cost(3, 8 * flops), Cost(4, flops), Cost(9, 12 * flops), inward=flops, outward=2 * flops)
        ax = plot_cost(report)
        ax.figure.canvas.draw()
        texts = [*ax.texts, ax.title, *ax.get_yticklabels(), *ax.get_legend().get_texts()]
        boxes = [text.get_window_extent() for text in texts]
        assert not any(box.overlaps(other) for box, other in combinations(boxes, 2))
        assert all(box.x0 >= 0 and box.x1 <= ax.figure.bbox.x1 and box.y0 >= 0 for box in boxes)
        for bar, text in zip(ax.patches, ax.texts, strict=True):
            assert bar.get_window_extent().x1 < text.get_window_extent().x0


def test_given_axes_are_drawn_in():
    ax = Figure().subplots()
    assert plot_cost(make().cost(), ax) is ax and not plt.get_fignums()


@pytest.mark.parametrize("unknown", [(None, 1, 2), (1, None, 2), (1, 1, None), (0, 0, 0), (1, 1, 2)])
def test_unknown_flops_are_an_error_that_says_where_to_get_them(unknown):
    with pytest.raises(ValueError, match=r"such as wrapper.cost\(images\); found primary .* into an auxiliary None"):
        plot_cost(CostReport(*(Cost(1, flops) for flops in unknown)))
