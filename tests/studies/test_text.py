"""The text study: tags and splits of the Brown corpus, and its networks."""

import subprocess

import brown
import pytest
import torch
from torch import nn


@pytest.fixture(params=["BROWN", "MINILM"])
def problem(request):
    return getattr(brown, request.param)


@pytest.mark.parametrize(
    ("tag", "bare"),
    [
        ("nn-tl", "nn"),
        ("np$-tl-hl", "np"),
        ("fw-at-tl", "at"),
        ("pps+bez-nc", "pps"),
        ("in+at-t", "in"),
        ("md*", "md"),
        ("*", "*"),
        ("*-hl", "*"),
        ("pp$$", "pp"),
        ("ppss+ber-n", "ppss"),
        ("--", "--"),
        (".-hl", "."),
        ("``", "``"),
    ],
)
def test_a_tag_loses_its_marks(tag, bare):
    assert brown.coarse(tag) == bare


def test_a_document_is_read_as_the_corpus_writes_it():
    document = brown.parse("ca01", "\n\n\tThe/at Fulton/np-tl 1/2/cd ''/'' //nil\n")
    assert document.words == ["the", "fulton", "1/2", "''", "/"]
    assert document.tags == ["at", "np", "cd", "''", "nil"]


def test_no_document_is_in_two_splits_and_every_genre_is_in_all():
    documents = brown.make_up()
    parts = brown.split(documents)
    names = [document.name for part in parts.values() for document in part]
    assert sorted(names) == sorted(document.name for document in documents)
    for part in parts.values():
        assert {document.name[1] for document in part} == set(brown.GENRES)
    assert brown.split(brown.make_up()) == parts


def test_words_and_tags_are_those_of_training_documents():
    text = "cat/nn cat/nn running/vbg " * 16 + "1960/cd " * 48
    parts = {"train": [brown.parse("ca01", text)], "validation": [brown.parse("cb01", "dog/nn jumping/uh 7/cd " * 16)]}
    splits, texts = brown.encode(parts)
    assert [len(part["input"]) for part in splits.values()] == [2, 1]
    assert texts["validation"] == [["dog", "jumping", "7"] * 16]
    rows, tags = splits["train"]["input"], splits["train"]["tags"]
    assert rows[0, 0] == rows[0, 1] >= 2 + len(brown.SUFFIXES)
    assert splits["validation"]["input"][0, :3].tolist() == [0, 2, 1]
    assert splits["validation"]["tags"][0, :3].tolist() == [tags[0, 0], -100, tags[1, 0]]


def test_few_samples_are_made_without_the_corpus(problem):
    splits = problem.load(True)
    assert set(splits) == {"train", "validation", "test"}
    for part in splits.values():
        count = len(part["primary"])
        assert 12 <= count <= 200
        assert part["tags"].shape == part["input"].shape[:2] == (count, brown.PLACES)
        assert part["primary"].dtype == part["tags"].dtype == torch.int64
        assert part["primary"].unique().tolist() == sorted(set(brown.GENRES.values()))
        assert part["tags"].max() < brown.TAGS
        words = problem is brown.BROWN
        assert part["input"].dtype == (torch.int64 if words else torch.float16)
        assert part["input"].shape[2:] == (() if words else (brown.STATE,))


def test_networks_give_a_genre_a_passage_and_a_tag_a_word(problem):
    inputs = problem.load(True)["train"]["input"][:3]
    primary, aux = problem.net().eval(), problem.auxes["tags"].net().eval()
    assert primary(inputs).shape == (3, len(set(brown.GENRES.values())))
    assert aux(inputs).shape == aux.predict(primary.features(inputs)).shape == (3, brown.PLACES, brown.TAGS)


def test_words_without_a_tag_do_not_count():
    outputs, tags = torch.randn(2, 3, brown.TAGS), torch.tensor([[0, -100, 2], [-100, -100, 5]])
    chosen = torch.stack([outputs[0, 0], outputs[0, 2], outputs[1, 2]])
    expected = nn.functional.cross_entropy(chosen, torch.tensor([0, 2, 5]))
    torch.testing.assert_close(brown.BROWN.auxes["tags"].loss(outputs, tags), expected)


def test_errors_are_percentages_of_passages():
    outputs = torch.eye(4)[[1, 2, 3, 3]]
    assert brown.BROWN.errors(outputs, torch.tensor([1, 2, 3, 0])).mean() == 25


def test_without_npm_one_reads_what_to_do(monkeypatch, tmp_path):
    def missing(*args, **options):
        raise FileNotFoundError

    def failing(*args, **options):
        raise subprocess.CalledProcessError(1, "npm", stderr="npm ERR! 404")

    for stub, words in ((missing, "not there: install"), (failing, "(?s)failed: install.*npm ERR! 404")):
        monkeypatch.setattr(subprocess, "run", stub)
        with pytest.raises(RuntimeError, match=words):
            brown.read(tmp_path / "corpus.tgz")
