"""CrossStitchFusion against plain loops."""

import pytest
import torch
from fusion_loops import as_feature, feature, settings_of, stir_, summed
from hypothesis import given
from hypothesis import strategies as st

from auxnas_layers import CrossStitchFusion, LayoutError


@given(settings_of(), st.booleans())
def test_cross_stitch_is_what_the_loops_say(setting, per_channel):
    channels, channel_dim, places, gates = setting
    fusion = CrossStitchFusion(channels, [channels] * len(gates), channel_dim=channel_dim, per_channel=per_channel)
    stir_(fusion.double())
    x, *sources = (feature(channels, places, channel_dim) for _ in range(1 + len(gates)))

    def scaled(weight, row):
        return [v * weight[c if per_channel else 0].item() for c, v in enumerate(row)]

    rows = summed(
        fusion,
        x,
        sources,
        gates,
        lambda row: scaled(fusion.own_weight, row),
        lambda j, row: scaled(fusion.weights[j], row),
    )
    torch.testing.assert_close(fusion(x, sources, gates), as_feature(fusion, x, rows), rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in fusion.parameters()) == (1 + len(gates)) * (channels if per_channel else 1)


def test_another_width_cannot_be_stitched():
    with pytest.raises(LayoutError, match="CrossStitchFusion mixes channel by channel, and 3 channels cannot meet 4"):
        CrossStitchFusion(3, [3, 4])
    lazy = CrossStitchFusion(None, [None])
    with pytest.raises(LayoutError):
        lazy.materialise(3, [4])
    assert lazy.is_lazy()
    lazy.materialise(3, [3])
