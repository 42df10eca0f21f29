"""NDDRFusion against plain loops."""

import torch
from fusion_loops import ACTIVATIONS, NORMS, as_feature, feature, mixed, normalised, settings_of, stir_, summed
from hypothesis import given
from hypothesis import strategies as st

from auxnas_layers import NDDRFusion


@given(settings_of(), st.data(), st.sampled_from(NORMS), st.sampled_from(list(ACTIVATIONS)), st.booleans())
def test_nddr_is_what_the_loops_say(setting, data, norm, activation, training):
    channels, channel_dim, places, gates = setting
    widths = data.draw(st.lists(st.integers(1, 4), min_size=len(gates), max_size=len(gates)))
    fusion = NDDRFusion(channels, widths, channel_dim=channel_dim, norm=norm, activation=activation).double()
    stir_(fusion).train(training)
    x, sources = feature(channels, places, channel_dim), [feature(d, places, channel_dim) for d in widths]
    rows = summed(
        fusion,
        x,
        sources,
        gates,
        lambda row: mixed(fusion.own_weight, row),
        lambda j, row: mixed(fusion.weights[j], row),
    )
    rows = normalised(rows, fusion.norms[0] if norm else None, fusion.training)
    expected = as_feature(fusion, x, [[ACTIVATIONS[activation](v) for v in row] for row in rows])
    torch.testing.assert_close(fusion(x, sources, gates), expected, rtol=1e-9, atol=1e-9)
