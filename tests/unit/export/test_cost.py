"""Parameters and FLOPs."""

import pytest
import torch
from pairs import IMAGES, make
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode
from zoo import Cnn

from auxnas_layers import AuxNASWrapper, Inputs
from auxnas_layers.errors import AuxNASWarning
from auxnas_layers.export.cost import Cost, CostReport, measure

RECURRENT = [nn.LSTM, nn.GRU, nn.RNN]
OPTIONS = [{}, {"batch_first": True}, {"bias": False}, {"bidirectional": True, "num_layers": 2}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_multiplies_each_step_by_each_weight(kind, options):
    net = kind(4, 16, **options)
    weights = sum(p.numel() for name, p in net.named_parameters() if "weight" in name)
    assert measure(net, Inputs((torch.randn(2, 3, 4),))).flops == 2 * 2 * 3 * weights


@pytest.mark.parametrize("kind", RECURRENT)
def test_of_packed_rows_only_the_steps_that_are_there_count(kind):
    net = kind(4, 16)
    packed = pack_padded_sequence(torch.randn(3, 2, 4), [3, 2])
    weights = sum(p.numel() for name, p in net.named_parameters() if "weight" in name)
    assert measure(net, Inputs((packed,))).flops == 2 * (3 + 2) * weights


def test_cost_takes_keyword_arguments_or_what_the_wrapper_was_made_with():
    class Named(nn.Module):
        def __init__(self, out=1):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, out)

        def forward(self, *, x, scale=1.0):
            return self.b(self.a(x * scale))

    x = torch.randn(2, 4)
    wrapper = AuxNASWrapper(Named(), Named(3), ["a"], example_inputs=Inputs((), {"x": x}))
    assert wrapper.cost() == wrapper.cost(x=x) == wrapper.cost(Inputs((), {"x": x}))
    assert wrapper.cost(x=x, aux_inputs=Inputs((), {"x": x, "scale": 2.0})) == wrapper.cost()
    assert AuxNASWrapper(Named(), Named(3), ["a"]).cost(x=x).primary == wrapper.cost().primary


def test_the_training_graph_is_counted_with_all_its_edges():
    wrapper = make().eval()
    for gate in wrapper.gates.values():
        gate.set_([0.4, 0.4, 0.4])
    cost = wrapper.cost(IMAGES)
    with FlopCounterMode(display=False) as counter:
        wrapper(IMAGES)
    edges = 2 * 2 * 4 * (6 * 6 * 64 + 12 * 6 * 16 + 12 * 12 * 16)  # both ways, multiply and add, 4 images
    assert cost.training.flops == counter.get_total_flops() + edges


def test_a_cost_says_what_a_training_step_costs_and_how_much_of_it_the_edges():
    report = CostReport(Cost(3, 100), Cost(4, 130), Cost(9, 300))
    assert report.edges == 70
    price = "a training step costs 3.00 times the primary's FLOPs: auxiliary 1.30, open edges 0.70"
    assert str(report).splitlines()[-1] == price
    wrapper = AuxNASWrapper(Cnn(), Cnn(), ["layer1"], example_inputs=IMAGES)
    assert wrapper.cost(IMAGES).edges > 0
    for gate in wrapper.gates.values():
        gate.set_([0.0])
    assert wrapper.cost(IMAGES).edges == 0
    assert str(wrapper.cost(IMAGES)).endswith("open edges 0.00")


def test_the_flops_of_edges_are_split_by_direction():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), ["layer1"], example_inputs=IMAGES)
    one = 2 * 6 * 6 * 4 * 64  # multiply and add, both widths, 4 images of 64 pixels
    cost = wrapper.cost()
    assert (cost.inward, cost.outward) == (one, cost.edges - one)
    wrapper.close_aux_to_primary_()
    assert wrapper.cost().inward == 0 and wrapper.cost().outward == wrapper.cost().edges == cost.outward


@pytest.mark.parametrize("unknown", [(None, 1, 2), (1, None, 2), (1, 1, None), (0, 0, 0)])
def test_where_flops_are_unknown_a_cost_says_nothing_of_a_step(unknown):
    report = CostReport(*(Cost(1, flops) for flops in unknown))
    assert "step" not in str(report) and report.edges in (None, 0)


class Three(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_cost_is_linear_in_the_number_of_auxiliaries(count):
    def cost(number):
        auxes = {f"aux{i}": Three() for i in range(number)}
        wrapper = AuxNASWrapper(Cnn(), auxes, {name: [("layer1", "0")] for name in auxes}, example_inputs=IMAGES)
        return wrapper.cost(IMAGES).training

    first, second, this = cost(1), cost(2), cost(count)
    assert this.flops == first.flops + (count - 1) * (second.flops - first.flops)
    parameters = second.parameters - first.parameters
    assert this.parameters == first.parameters + (count - 1) * parameters


class Decodes(nn.Sequential):
    """Returns an array in eval mode, as detectors do."""

    def forward(self, x):
        y = super().forward(x)
        return y if self.training else y.detach().numpy().argmax(1)


class Uncounted(nn.Sequential):
    """Runs, but not where a dispatch mode looks, as some kernels do."""

    def forward(self, x):
        if _get_current_dispatch_mode() is not None:
            raise NotImplementedError("a kernel without a rule for modes")
        return super().forward(x)


def layers(kind=nn.Sequential):
    return kind(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_arrays_and_blocks_compiled_as_one_graph_are_no_business_of_an_export(compiled, grad):
    primary = layers(Decodes)
    if compiled:
        primary[2].compile(fullgraph=True, backend="eager")
    with torch.set_grad_enabled(grad):
        wrapper = AuxNASWrapper(primary, layers(), ["0"], example_inputs=torch.randn(3, 4))
        wrapper.close_aux_to_primary_()
        assert type(wrapper.export_primary()) is Decodes
    assert wrapper.export_report.exported.flops == 2 * 3 * (4 * 8 + 8 * 2)


def test_flops_that_cannot_be_counted_are_none_with_one_warning():
    wrapper = AuxNASWrapper(layers(Uncounted), layers(), ["0"], example_inputs=torch.randn(3, 4))
    wrapper.close_aux_to_primary_()
    with pytest.warns(AuxNASWarning, match="FLOPs are not counted.*Uncounted: NotImplementedError") as seen:
        wrapper.export_primary()
    assert len(seen) == 1
    report = wrapper.export_report
    assert report.exact and report.exported.flops is None and report.exported.parameters == 58
    assert "not counted" in str(report)
    assert wrapper.cost().auxiliary.flops == 2 * 3 * (4 * 8 + 8 * 2)


def test_errors_of_a_network_itself_are_raised_by_a_cost():
    wrapper = AuxNASWrapper(layers(), layers(), ["0"], example_inputs=torch.randn(3, 4))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        wrapper.cost(torch.randn(3, 5))
