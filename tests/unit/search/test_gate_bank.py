"""The gates of a wrapper together."""

from functools import partial

import pytest
import torch
from helpers import workers
from pairs import IMAGES, make
from zoo import Cnn

from auxnas_layers import MTLNAS, AuxNASWrapper, RelaxedBernoulliGate, SearchError


def test_gates_that_are_nan_are_named():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], example_inputs=IMAGES)
    with torch.no_grad():
        wrapper.gates["aux_to_primary"].alpha[1] = torch.nan
    for use in (
        lambda: wrapper(IMAGES),
        lambda: wrapper.search_penalty(0.5),
        wrapper.architecture,
        wrapper.export_primary,
    ):
        with pytest.raises(
            SearchError, match="gates of aux_to_primary are NaN: 0 -> 1. .*load_state_dict an earlier state"
        ):
            use()
    assert not workers()


@pytest.mark.parametrize("evaluation", ["soft", "hard", "stochastic"])
@pytest.mark.parametrize("training", [True, False])
def test_a_gate_that_is_nan_is_never_taken_for_closed(evaluation, training):
    gate = RelaxedBernoulliGate(2, evaluation=evaluation).train(training)
    gate.alpha.data[0] = torch.nan
    assert gate()[0].isnan() and not gate()[1].isnan()
    wrapper = make(MTLNAS(gate=partial(RelaxedBernoulliGate, evaluation=evaluation))).train(training)
    wrapper.gates["primary_to_aux"].alpha.data[1] = torch.nan
    for use in (lambda: wrapper(IMAGES), wrapper.discretize_, wrapper.export_multitask, wrapper.architecture):
        with pytest.raises(SearchError, match="gates of primary_to_aux are NaN: 0 -> 1"):
            use()
