"""What the library promises of any two networks, for networks that nobody here wrote."""

import pytest
import torch
from catalogue import MODELS, Model
from torch import nn

from auxnas_layers import AuxNAS, AuxNASWrapper, Inputs
from auxnas_layers.suggest import suggest_taps
from auxnas_layers.taps import features

PLAIN = AuxNAS(own_share=1.0, start="zero")


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_a_pair_of_one_family_keeps_every_promise(model: Model):
    check(model.make, model.make, model.inputs(), None)


def check(make_primary, make_aux, inputs: Inputs, aux_inputs: Inputs | None) -> None:
    primary, aux = awake(make_primary()), awake(make_aux())
    own = inputs if aux_inputs is None else aux_inputs
    call = inputs if aux_inputs is None else Inputs(inputs.args, {**inputs.kwargs, "aux_inputs": aux_inputs})
    taps = suggest_taps(primary, aux, inputs, aux_inputs=aux_inputs)
    keys = list(primary.state_dict())
    wrapper = AuxNASWrapper(primary, aux, taps, search=PLAIN, example_inputs=call)
    wrapper.eval()
    with torch.no_grad():
        expected = values(inputs.call(primary)), values(own.call(aux))
        output = call.call(wrapper)
    assert wrapper.architecture().open_edges("aux_to_primary")
    for found, wanted in zip((values(output.primary), values(output.aux)), expected, strict=True):
        assert found.keys() == wanted.keys()
        for path, tensor in found.items():
            assert torch.equal(tensor, wanted[path]) or torch.equal(tensor.isnan(), wanted[path].isnan()), path
    train_once(wrapper, call)
    wrapper.close_aux_to_primary_()
    net = wrapper.eval().export_primary(call)
    assert wrapper.export_report.exact and wrapper.export_report.exported == wrapper.export_report.primary
    assert type(net) is type(primary) and list(net.state_dict()) == keys


def awake(net: nn.Module) -> nn.Module:
    """Weights that start at zero, as heads and last layers of blocks may, would let no gradient through."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return net


def values(output) -> dict:
    return dict(features(output))


def train_once(wrapper: AuxNASWrapper, call: Inputs) -> None:
    """One step with every edge open: gradients in both networks and in every gate."""
    for parameter in wrapper.fusion_parameters():
        nn.init.normal_(parameter, std=0.02)
    output = call.call(wrapper.train())
    loss = sum((t.double() - 1).square().mean() for _, t in features((output.primary, output.aux)) if t.requires_grad)
    loss.backward()
    for net in (wrapper.primary_net, wrapper.aux_net):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert (wrapper.gates["aux_to_primary"].alpha.grad != 0).all()
    with torch.no_grad():
        for parameter in wrapper.weight_parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad.nan_to_num()
    wrapper.zero_grad()
