"""The fusions of all layers that receive."""

import pytest
import torch
from torch import nn

from auxnas_layers import CrossStitchFusion, CrossTaskFusion, LayoutError, NDDRFusion
from auxnas_layers.features.dry_run import LayerInfo
from auxnas_layers.features.layouts import Layout
from auxnas_layers.features.taps import Layer
from auxnas_layers.fusion.bank import FusionBank

P0, P1, A0, A1 = Layer("primary", "a.0"), Layer("primary", "b"), Layer("aux", "a.0"), Layer("aux", "b")
LAYERS = {"primary": [P0, P1], "aux": [A0, A1]}
SOURCES = {P1: [A0, A1], A0: [P0]}
INFO = LayerInfo(calls=1, shape=(2, 6, 5), layout=Layout("b c t"), dtype=torch.float32, device=torch.device("cpu"))


def nets():
    return {role: nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 3)), "b": nn.Conv1d(3, 6, 1)}) for role in LAYERS}


def bank(fusion=CrossTaskFusion, nets=nets, **options):
    return FusionBank(LAYERS, SOURCES, lambda layer: fusion(None, [None] * len(SOURCES[layer]), **options), nets())


def test_only_layers_that_receive_have_a_fusion_under_their_number():
    made = bank()
    assert list(made.by_layer()) == [P1, A0]
    assert {role: list(side) for role, side in made.items()} == {"primary": ["1"], "aux": ["0"]}
    assert [len(fusion.weights) for fusion in made.by_layer().values()] == [2, 1]


def test_edges_are_sized_in_the_dtype_of_the_layer_that_receives_without_drawing_the_users_numbers():
    made, networks = bank(start="scaled", nets=lambda: nets() | {"aux": nets()["aux"].double()}), nets()
    networks["aux"].double()
    state = torch.get_rng_state()
    made.size_(dict.fromkeys([P0, P1, A0, A1], INFO), networks)
    assert torch.equal(state, torch.get_rng_state())
    weights = [weight for fusion in made.by_layer().values() for weight in fusion.weights]
    assert [weight.dtype for weight in weights] == [torch.float32] * 2 + [torch.float64]
    assert {tuple(weight.shape) for weight in weights} == {(6, 6)}
    assert made.operations(dict.fromkeys([P0, P1, A0, A1], INFO)) == {P1: [36.0 * 10] * 2, A0: [36.0 * 10]}


def test_all_features_that_cannot_be_fused_come_in_one_message():
    other = LayerInfo(calls=1, shape=(2, 4, 5), layout=Layout("b c t"))
    with pytest.raises(LayoutError) as error:
        bank(CrossStitchFusion).size_({P0: other, P1: other, A0: INFO, A1: INFO}, nets())
    message = str(error.value)
    assert message.startswith("these features cannot be fused:\n") and message.count("\n") == 2
    assert "primary 'b': CrossStitchFusion mixes channel by channel" in message and "aux 'a.0': Cross" in message


@pytest.mark.parametrize("fusion, left", [(CrossTaskFusion, []), (NDDRFusion, [P1])])
def test_a_fusion_that_keeps_no_edge_is_dropped_unless_it_acts_alone(fusion, left):
    made = bank(fusion).train(False)
    kept = made.kept(LAYERS, {P1: [], A0: [0]}, {A0: [P0]}, nets())
    assert list(kept.by_layer()) == [*left, A0]
    assert not kept.training and not kept["aux"].training
    assert kept.by_layer()[A0] is made.by_layer()[A0]
    assert made.acting([P0, P1]) == ([f"NDDRFusion at {P1.name!r}"] if left else [])


def test_edges_that_are_kept_get_new_numbers():
    made = bank()
    made.size_(dict.fromkeys([P0, P1, A0, A1], INFO), nets())
    second = made.by_layer()[P1].weights[1]
    kept = made.kept({"primary": [P0, P1]}, {P1: [1], A0: []}, {P1: [A1]}, nets())
    assert list(kept.by_layer()) == [P1] and list(kept) == ["primary"]
    assert kept.by_layer()[P1].weights[0] is second and len(kept.by_layer()[P1].weights) == 1
