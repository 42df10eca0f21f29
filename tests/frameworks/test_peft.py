"""LoRA of peft on the primary: before wrapping or after it, trained, exported and merged."""

import peft
import pytest
import torch
from samples import INPUTS, LABELS, OTHERS, STEPS, Net, loss_of, wrap
from torch import nn

from auxnas_layers import AuxNASWrapper

LORA = peft.LoraConfig(target_modules=["first", "second"], r=2)


def train_(wrapper: AuxNASWrapper) -> None:
    """Frozen parameters get no gradients, and optimisers leave them alone."""
    optimiser = torch.optim.AdamW(wrapper.param_groups(lr=1e-2))
    for step in range(STEPS):
        loss = loss_of(wrapper(INPUTS), LABELS, OTHERS) + wrapper.search_penalty(step / STEPS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def moved(net: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """What was trained, by the last part but one of its name."""
    return {key.split(".")[-3] for key, value in net.state_dict().items() if not torch.equal(value, before[key])}


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def assert_merges(merged: nn.Module, wanted: torch.Tensor) -> None:
    assert type(merged) is Net
    plain = Net(2)
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(plain(INPUTS), wanted)


def test_a_primary_with_lora_is_wrapped_trained_exported_and_merged():
    torch.manual_seed(0)
    primary = peft.get_peft_model(Net(2), LORA)
    taps = [(f"base_model.model.{name}", name) for name in ("first", "second")]
    wrapper = AuxNASWrapper(primary, Net(3), taps, example_inputs=INPUTS)
    before = state(primary)
    train_(wrapper)
    assert moved(primary, before) == {"lora_A", "lora_B"}
    exported = wrapper.eval().export_primary()
    assert type(exported) is peft.PeftModel and wrapper.export_report.exact
    wanted = wrapper(INPUTS).primary
    assert torch.equal(exported(INPUTS), wanted)
    assert_merges(exported.merge_and_unload(), wanted)
    assert torch.equal(wrapper(INPUTS).primary, wanted)  # the export was a copy


def test_lora_is_put_into_the_primary_of_a_wrapper_and_the_taps_stay():
    wrapper = wrap()
    lora = peft.get_peft_model(wrapper.primary_net, LORA)
    before = state(wrapper)
    train_(wrapper)
    assert moved(wrapper.primary_net, {k.removeprefix("primary_net."): v for k, v in before.items()}) == {
        "lora_A",
        "lora_B",
    }
    for other in (wrapper.aux_net, wrapper.fusions, wrapper.gates):
        assert all(parameter.requires_grad for parameter in other.parameters())
    wanted = wrapper.eval()(INPUTS).primary
    assert torch.equal(wrapper.export_primary()(INPUTS), wanted)
    assert lora.merge_and_unload() is wrapper.primary_net
    torch.testing.assert_close(wrapper(INPUTS).primary, wanted)
    assert_merges(wrapper.export_primary(), wanted)


def test_an_adapter_is_saved_and_loaded_into_a_plain_primary(tmp_path):
    wrapper = wrap()
    lora = peft.get_peft_model(wrapper.primary_net, LORA)
    train_(wrapper)
    lora.save_pretrained(tmp_path)
    wanted = wrapper.eval().export_primary()(INPUTS)
    assert torch.equal(peft.PeftModel.from_pretrained(wrap().primary_net, tmp_path).eval()(INPUTS), wanted)


def test_lora_around_the_wrapper_trains_nothing_else_which_peft_cannot_be_told_to():
    """Put it into the primary instead."""
    names = ["primary_net.first", "primary_net.second"]
    around = peft.get_peft_model(wrap(), peft.LoraConfig(target_modules=names, r=2))
    assert all("lora" in name for name, parameter in around.named_parameters() if parameter.requires_grad)
    with pytest.raises(TypeError, match="modules_to_save cannot be applied to modules of type"):
        peft.get_peft_model(wrap(), peft.LoraConfig(target_modules=names, modules_to_save=["fusions"]))
