"""What the library promises of any two networks, for networks that nobody here wrote."""

import gc
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from catalogue import MIXED, MODELS, Model
from torch import nn

from auxnas_layers import AuxG, AuxNAS, AuxNASWrapper, Inputs, suggest_taps
from auxnas_layers.features.outputs import features

PLAIN = AuxNAS(own_share=1.0, start="zero")
RESULTS = Path(os.environ.get("MODEL_RESULTS", "model-results.jsonl"))


@pytest.fixture(autouse=True)
def calm():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries about themselves
        yield
    gc.collect()


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_a_pair_of_one_family_keeps_every_promise(model: Model):
    note(model.library, f"{model!r}", check(model, model))


@pytest.mark.parametrize("pair", MIXED, ids=lambda pair: f"{pair[0]!r}-x-{pair[1]!r}")
def test_a_mixed_pair_keeps_every_promise(pair):
    note("mixed pairs", f"{pair[0]!r} x {pair[1]!r}", check(*pair))


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_an_exported_network_can_be_recorded_where_the_plain_one_can(model: Model):
    primary, inputs = without_cache(model.make().eval()), model.inputs()
    way = next((name for name, record in WAYS.items() if can(record, primary, inputs)), None)
    if way is not None:
        wrapper = AuxNASWrapper(
            primary, without_cache(model.make()), suggest_taps(primary, primary, inputs), search=AuxG()
        )
        inputs.call(wrapper.eval())
        assert_recorded(WAYS[way], wrapper.export_primary(), inputs)
    note(way or "neither", f"{model!r}", 0)


def without_cache(net: nn.Module) -> nn.Module:
    """Without keys and values for further tokens in the output of a decoder, an object that torch cannot record."""
    for module in net.modules():
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False
    return net


def by_export(net: nn.Module, inputs: Inputs) -> nn.Module:
    return torch.export.export(net, inputs.args, dict(inputs.kwargs), strict=False).module()


def by_trace(net: nn.Module, inputs: Inputs) -> nn.Module:
    examples = {"example_inputs": inputs.args} if inputs.args else {"example_kwarg_inputs": dict(inputs.kwargs)}
    return torch.jit.trace(net, check_trace=False, strict=False, **examples)


WAYS = {"torch.export": by_export, "torch.jit.trace": by_trace}
Record = Callable[[nn.Module, Inputs], nn.Module]


def can(record: Record, net: nn.Module, inputs: Inputs) -> bool:
    """Whether torch can record a network, whatever it says if it cannot."""
    try:
        assert_recorded(record, net, inputs)
    except Exception:
        return False
    return True


def assert_recorded(record: Record, net: nn.Module, inputs: Inputs) -> None:
    """What was recorded computes what the network does."""
    recorded = record(net, inputs)
    with torch.no_grad():
        found, wanted = values(inputs.call(recorded)), values(inputs.call(net))
    for path, tensor in wanted.items():
        torch.testing.assert_close(found[path], tensor, rtol=1e-3, atol=1e-3, equal_nan=True)


def check(primary_model: Model, aux_model: Model) -> int:
    """Suggested taps, law 1, a training step, closing, exact export; returns the number of taps."""
    primary, aux = awake(primary_model.make()), awake(aux_model.make())
    inputs, own = primary_model.inputs(), aux_model.inputs()
    if primary_model is aux_model:
        own, call = inputs, inputs
    else:
        call = Inputs(inputs.args, {**inputs.kwargs, "aux_inputs": own})
    taps = suggest_taps(primary, aux, inputs, aux_inputs=own)
    keys = list(primary.state_dict())
    wrapper = AuxNASWrapper(primary, aux, taps, search=PLAIN, example_inputs=call).eval()
    with torch.no_grad():
        expected = values(inputs.call(primary)), values(own.call(aux))
        output = call.call(wrapper)
    assert wrapper.architecture().open_edges("aux_to_primary")
    for found, wanted in zip((values(output.primary), values(output.aux)), expected, strict=True):
        assert found.keys() == wanted.keys()
        for path, tensor in found.items():
            torch.testing.assert_close(tensor, wanted[path], rtol=0, atol=0, equal_nan=True)
    train_once(wrapper, call)
    wrapper.close_aux_to_primary_()
    net = wrapper.eval().export_primary(call)
    assert wrapper.export_report.exact and wrapper.export_report.exported == wrapper.export_report.primary
    assert type(net) is type(primary) and list(net.state_dict()) == keys
    return len(taps)


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


def note(library: str, name: str, taps: int) -> None:
    """One line of the table of docs/help/supported.md."""
    with RESULTS.open("a") as file:
        file.write(json.dumps({"library": library, "name": name, "taps": taps}) + "\n")
