"""Taking out the primary network."""

from functools import partial

import pytest
import torch
from helpers import stir_
from pairs import IMAGES
from torch import nn
from zoo import Cnn, Vit

from auxnas_layers import AuxNASWrapper, CrossTaskFusion, ExportError


def test_export_of_open_edges_says_what_to_do():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"])
    with pytest.raises(ExportError) as error:
        wrapper.export_primary()
    for message in (
        "1 edge(s) into the primary",
        "search_penalty(step / total_steps)",
        "these edges close by progress 0.4. Was this checkpoint the best by the score of wrapper.primary_net? Then",
        "wrapper.export_primary(allow_open=True)",
        "'layer1' -> 'layer1' (open, gate 0.1)",
    ):
        assert message in str(error.value)
    assert isinstance(error.value, RuntimeError)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_the_wrapper_cannot_be_traced_or_exported_but_what_it_exports_can():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], example_inputs=IMAGES).eval()
    message = "cannot be traced or exported; export what wrapper.export_primary"
    with pytest.raises(ExportError, match=message):
        torch.jit.trace(wrapper, (IMAGES,))
    with pytest.raises(ExportError, match=message):
        torch.export.export(wrapper, (IMAGES,))
    wrapper.close_aux_to_primary_()
    net = wrapper.export_primary()
    torch.testing.assert_close(torch.export.export(net, (IMAGES,)).module()(IMAGES), net(IMAGES))


def test_fusions_with_norm_and_activation_leave_an_exact_export():
    for norm in (nn.LayerNorm, nn.BatchNorm1d):
        fusion = partial(CrossTaskFusion, norm=norm, activation=torch.nn.functional.gelu)
        net = Cnn()
        wrapper = AuxNASWrapper(net, Vit(), taps=[("layer1", "blocks.0")], fusion=fusion, example_inputs=IMAGES)
        assert torch.equal(wrapper(IMAGES).primary, net(IMAGES))
        stir_(wrapper)
        wrapper(IMAGES).primary.sum().backward()
        wrapper.eval().close_aux_to_primary_()
        assert torch.equal(wrapper.export_primary()(IMAGES), wrapper(IMAGES).primary)
