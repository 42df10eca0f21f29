"""Where the engine stands at taps: networks with a state of their own around one, and taps that do not fire once."""

import pytest
import torch
from helpers import PLAIN, loss_of, workers
from mlps import Mlp, X, wrap
from torch import nn
from zoo import Encoder

from auxnas_layers import AuxNASWrapper, TapError

# Networks with a state of their own around a tap


@pytest.mark.parametrize("side", ["primary", "aux"])
def test_no_grad_around_a_tap_does_not_cut_the_other_networks_gradient(side):
    frozen = Mlp(torch.no_grad)
    wrapper = wrap(**{side: frozen})
    other = wrapper.aux_net if side == "primary" else wrapper.primary_net
    output = wrapper(X)
    loss_of(getattr(output, side)).backward()
    assert other.a.weight.grad.abs().sum() > 0  # over the edge that enters at the frozen tap
    assert frozen.a.weight.grad is None


@pytest.mark.parametrize("lockstep", [True, False])
@pytest.mark.parametrize("side", ["primary", "aux"])
def test_inference_mode_around_a_tap_is_an_error_where_edges_are_trained(side, lockstep):
    wrapper = wrap(**{side: Mlp(torch.inference_mode)})
    if not lockstep:
        wrapper.close_aux_to_primary_()
    with pytest.raises(
        TapError, match=rf"{side} tap 'a' lies in torch.inference_mode\(\).*use torch.no_grad\(\) there"
    ):
        wrapper(X)
    with torch.no_grad():
        wrapper(X)
    assert not workers()


# Taps that do not fire once


def test_taps_inside_torchs_encoder_layers_switch_off_its_fast_path():
    wrapper = AuxNASWrapper(
        Encoder(), Encoder(), taps=["encoder.layers.0.linear2", "encoder.layers.1.self_attn"][:1], search=PLAIN
    ).eval()
    x = torch.randn(2, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(wrapper(x).primary, wrapper.primary_net(x))


def test_a_tap_that_another_path_leaves_out_is_named():
    class Choice(Mlp):
        def forward(self, x):
            return self.head(self.b(self.a(x)) if x.sum() > 0 else self.a(x))

    for side in ("primary", "aux"):
        wrapper = wrap(**{side: Choice()}, example_inputs=torch.ones(3, 4))
        with pytest.raises(TapError, match=f"the {side} forward ended without reaching 'b'.*list_taps"):
            wrapper(-torch.ones(3, 4))
        wrapper.close_aux_to_primary_()
        with pytest.raises(TapError, match=f"the {side} forward ended without reaching 'b'"):
            wrapper(-torch.ones(3, 4))
        assert not workers()


def test_a_tap_called_again_or_too_early_is_named():
    class Data(Mlp):
        def forward(self, x):
            layers = (
                [self.a, self.b, self.b] if x[0, 0] == 1 else [self.b, self.a] if x[0, 0] == 2 else [self.a, self.b]
            )
            for layer in layers:
                x = layer(x)
            return self.head(x)

    def square():
        net = Data()
        net.a = nn.Linear(8, 8)
        return net

    for side in ("primary", "aux"):
        for lockstep in (True, False):
            wrapper = AuxNASWrapper(square(), square(), taps=["a", "b"], example_inputs=torch.zeros(3, 8))
            if side == "primary":
                wrapper.aux_net.__class__ = Mlp
            else:
                wrapper.primary_net.__class__ = Mlp
            if not lockstep:
                wrapper.close_aux_to_primary_()
            with pytest.raises(TapError, match=f"{side} tap 'b' is called more than once in one forward"):
                wrapper(torch.full((3, 8), 1.0))
            with pytest.raises(TapError, match=f"{side} tap 'b' was reached before 'a'; list the taps in the order"):
                wrapper(torch.full((3, 8), 2.0))
            assert not workers()
