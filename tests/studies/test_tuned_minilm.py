"""MiniLM as it is trained on: its words are those of the frozen one, and a batch makes no difference."""

import brown
import pytest
import torch
import tuned_minilm
from tuned_minilm import PIECES, TUNED_MINILM, Words


@pytest.fixture(scope="module")
def texts():
    return brown.chosen(*brown.encode(brown.split(brown.make_up())))[1]["test"][:3]


@pytest.fixture(scope="module")
def inputs(texts):
    texts = [*texts[:2], ["electroencephalographically"] * brown.PLACES]  # of more pieces than there is place for
    count = torch.zeros(3, brown.PLACES, dtype=torch.long)
    return tuned_minilm.with_pieces({"test": {"input": count}}, {"test": texts})["test"]["input"]


def test_it_starts_as_the_frozen_network(texts, inputs):
    frozen = brown.minilm(texts[:2])
    with torch.no_grad():
        states = TUNED_MINILM.net().eval().features(inputs[:2])
    torch.testing.assert_close(states, frozen.float(), atol=2e-3, rtol=2e-3)  # kept in half precision


def test_a_word_is_the_mean_over_its_pieces_and_zero_where_it_is_cut():
    states = torch.arange(8.0).view(1, 4, 2)
    words = Words()(states, torch.tensor([[0, 1, 1, 2]]))
    assert words.shape == (1, brown.PLACES, 2)
    assert words[0, :3].tolist() == [[3, 4], [6, 7], [0, 0]]


def test_a_passage_of_too_many_pieces_is_cut(inputs):
    assert inputs.shape == (3, PIECES, 2) and inputs[2, -1, 0] != tuned_minilm.PADDING
    assert 0 < inputs[2, :, 1].max() < brown.PLACES == inputs[0, :, 1].max()


def test_what_else_is_in_a_batch_makes_no_difference(inputs):
    net = TUNED_MINILM.auxes["tags"].net().eval()
    with torch.no_grad():
        torch.testing.assert_close(net(inputs)[:1], net(inputs[:1]), atol=1e-4, rtol=1e-4)
