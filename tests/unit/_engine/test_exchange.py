"""The features of one forward: what a tap hears, and which features cannot meet."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, loss_of, stir_, workers
from mlps import X
from torch import nn
from zoo import CASES, Cnn, Flattening, Vit

from auxnas_layers import AuxG, AuxNAS, AuxNASWrapper, Inputs, LayoutError, Tap

BY_NAME = {case.name: case for case in CASES}


def test_in_place_layers_after_a_tap_do_not_corrupt_what_later_taps_hear():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(F.relu_(self.b(F.relu_(self.a(x)))))

    class OutOfPlace(InPlace):
        def forward(self, x):
            return self.head(F.relu(self.b(F.relu(self.a(x)))))

    for search in (AuxNAS(own_share=0.5, start="scaled"), AuxG(own_share=0.5, start="scaled")):
        outputs = []
        for make in (InPlace, OutOfPlace):
            torch.manual_seed(3)
            wrapper = AuxNASWrapper(make(), make(), taps=["a", "b"], search=search, example_inputs=X)
            stir_(wrapper)
            wrapper.gates["primary_to_aux"].set_([0.0, 1.0, 1.0])  # tap 0 hands its own feature on, tap 1 hears it
            output = wrapper(X)
            (loss_of(output.primary) + loss_of(output.aux)).backward()
            outputs.append((output, wrapper.primary_net.a.weight.grad))
        assert_same(outputs[0][0], outputs[1][0])
        torch.testing.assert_close(outputs[0][1], outputs[1][1])


def test_selecting_one_of_several_outputs_leaves_the_others():
    case = BY_NAME["lstm"]
    wrapper = case.wrapper(search=AuxG(start="scaled"))
    primary, aux = case.nets()
    output = case.example().call(wrapper)
    assert torch.equal(output.aux[1], aux(*case.example().args)[1])  # the state h, untouched
    assert not torch.equal(output.aux[0], aux(*case.example().args)[0])
    AuxNASWrapper(primary, aux, taps=["lstm"], example_inputs=case.example())  # of a tuple the first
    AuxNASWrapper(primary, aux, taps=[Tap("lstm", primary_select=(1, 0), aux_select=(1, 0))])


IMAGES = torch.randn(2, 3, 8, 8)


def test_features_that_cannot_be_aligned_are_named_by_edge():
    tap = Tap("layer1", "blocks.0", aux_layout="b (h w) c")  # the class token does not fit a grid
    with pytest.raises(LayoutError) as error:
        AuxNASWrapper(Cnn(), Vit(), taps=[tap], example_inputs=IMAGES)
    assert "aux 'blocks.0' -> primary 'layer1'" in str(error.value)
    assert "primary 'layer1' -> aux 'blocks.0'" in str(error.value)
    assert "name extra tokens as in 'b 1+(h w) c'" in str(error.value)
    tap = Tap("layer1", "blocks.0", aux_layout="b 1+(h w) c")
    AuxNASWrapper(Cnn(), Vit(), taps=[tap], example_inputs=IMAGES)(IMAGES)


def test_different_numbers_of_samples_are_an_error():
    example = Inputs((IMAGES,), {"aux_inputs": (torch.randn(3, 3, 8, 8),)})
    with pytest.raises(LayoutError, match="2 samples cannot meet 3|3 samples cannot meet 2"):
        AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], example_inputs=example)
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], example_inputs=IMAGES)
    with pytest.raises(LayoutError, match="primary 'layer1' -> aux 'layer1': 2 samples cannot meet 3"):
        wrapper(IMAGES, aux_inputs=(torch.randn(3, 3, 8, 8),))
    assert not workers()


def test_a_flattened_map_of_another_size_at_run_time_still_aligns():
    wrapper = AuxNASWrapper(Cnn(), Vit(), taps=[("layer1", "blocks.0")], example_inputs=IMAGES)
    wrapper(torch.randn(5, 3, 12, 12))
    assert "Flattening" in repr(AuxNASWrapper(Flattening(), Cnn(), taps=[("conv", "layer1")], example_inputs=IMAGES))


@pytest.mark.parametrize("search", [AuxNAS(), AuxG()], ids=repr)
def test_hooks_of_the_user_on_fusions_fire(search):
    wrapper = AuxNASWrapper(Cnn(), Cnn(), ["layer1", "layer2"], search=search, example_inputs=torch.randn(2, 3, 8, 8))
    seen = []
    for role, side in wrapper.fusions.items():
        for number, fusion in side.items():
            fusion.register_forward_hook(lambda module, args, out, at=(role, number): seen.append((at, out.shape[1])))
    wrapper(torch.randn(2, 3, 8, 8))
    expected = [(("aux", "0"), 6), (("aux", "1"), 12)]
    if search == AuxNAS():
        expected = [(("aux", "0"), 6), (("primary", "0"), 6), (("aux", "1"), 12), (("primary", "1"), 12)]
    assert seen == expected
    seen.clear()
    for gate in wrapper.gates.values():
        gate.set_([0.0] * len(gate.closed))
    wrapper(torch.randn(2, 3, 8, 8))
    assert search == AuxNAS() or [at for at, _ in seen] == [("aux", "0"), ("aux", "1")]  # a share of its own is left


@pytest.mark.parametrize("change", ["primary_net", "aux_net"])
def test_a_layer_that_has_another_width_now_is_named_with_both_widths(change):
    wrapper = AuxNASWrapper(*(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)) for _ in "12"), ["0"], example_inputs=X)
    getattr(wrapper, change)[0] = nn.Linear(4, 6)
    with pytest.raises(LayoutError, match=r"other channels than when the edges were sized .*\n.*'0'.*: 6 channels, 8"):
        wrapper(X)
