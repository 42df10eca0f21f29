"""Averages of the weights, by torch and by timm: of the primary alone, or of the whole wrapper."""

import copy

import pytest
import torch
from samples import INPUTS, LABELS, OTHERS, STEPS, Net, assert_exports, loss_of, wrap
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

AVERAGES = {
    "torch": (lambda net: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.8)), "update_parameters"),
    "timm": (lambda net: ModelEmaV3(net, decay=0.8), "update"),
}


@pytest.mark.parametrize("by", AVERAGES)
def test_the_average_of_the_primary_is_that_of_the_wrapper_and_both_export(by):
    make, update = AVERAGES[by]
    wrapper = wrap()
    alone, whole = make(wrapper.primary_net), make(wrapper)
    optimiser = torch.optim.AdamW(wrapper.param_groups(lr=1e-2))
    wanted = copy.deepcopy(wrapper.primary_net.state_dict())
    for step in range(STEPS):
        loss = loss_of(wrapper(INPUTS), LABELS, OTHERS) + wrapper.search_penalty(step / STEPS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for average, net in ((alone, wrapper.primary_net), (whole, wrapper)):
            getattr(average, update)(net)
        first = by == "torch" and step == 0  # torch takes the first weights as they are
        wanted = {
            key: value.lerp(wrapper.primary_net.state_dict()[key], 1.0 if first else 0.2)
            for key, value in wanted.items()
        }
    assert type(alone.module) is Net
    for key, value in alone.module.state_dict().items():
        torch.testing.assert_close(value, wanted[key])
        torch.testing.assert_close(whole.module.state_dict()[f"primary_net.{key}"], value)
    assert not torch.equal(alone.module(INPUTS), wrapper.primary_net(INPUTS))
    wrapper.primary_net.load_state_dict(alone.module.state_dict())
    assert_exports(wrapper)
    assert_exports(whole.module)
