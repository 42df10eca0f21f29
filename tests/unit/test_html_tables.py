"""Tables in notebooks: the same cells as in print, escaped."""

import re
from html.parser import HTMLParser

import pytest
import torch
from pairs import IMAGES, searched
from torch import nn
from zoo import Cnn

from auxnas_layers import Architecture, AuxNASWrapper, Edge, list_taps, suggest_taps
from auxnas_layers.features import TapList
from auxnas_layers.tables import html_table


class Reader(HTMLParser):
    """Reads texts, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.rows = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += int(dict(attrs).get("colspan", 1))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(shown):
    reader = Reader()
    reader.feed(shown._repr_html_() if not isinstance(shown, str) else shown)
    assert not reader.open
    assert len(set(reader.rows)) <= 1, "rows of different width"
    return [text for text in reader.texts if text.strip()]


def wrapper():
    return AuxNASWrapper(Cnn(), Cnn(), ["layer1", "layer2"], example_inputs=IMAGES)


def exported():
    found = wrapper()
    found.close_aux_to_primary_()
    found.eval().export_primary()
    return found.export_report


def unchecked():
    found = wrapper()
    found.close_aux_to_primary_()
    found.export_primary(check=False)
    return found.export_report


def multitask():
    found = searched()
    found.discretize_()
    found.export_multitask()
    return found.export_report


MADE = {
    "taps": lambda: list_taps(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), torch.ones(2, 4)),
    "no taps": lambda: list_taps(Cnn(), IMAGES, pattern="none"),
    "architecture": lambda: wrapper().architecture(),
    "cost": lambda: wrapper().cost(),
    "export": exported,
    "unchecked export": unchecked,
    "multitask export": multitask,
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_notebook_shows_the_words_that_print_shows(made):
    shown = made()
    assert " ".join(" ".join(read(shown)).split()) == " ".join(str(shown).split())


def test_suggested_taps_are_a_table_and_a_line_to_paste():
    shown = suggest_taps(Cnn(), Cnn(), IMAGES)
    texts = read(shown)
    assert texts[:4] == ["primary", "auxiliary", shown[0], shown[0]]
    assert texts[-2] == f"taps = {shown!r}" and str(shown).endswith(f"  # {texts[-1]}")
    assert read(TapList()) == ["primary", "auxiliary", "taps = []"]


def test_names_are_escaped():
    edge = Edge("aux_to_primary", 0, 0, 0.5, True, "<script>", "a&b")
    html = Architecture((edge,))._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "a&amp;b" in html
    assert "<i>" not in html_table(["<i>"], [["<i>"]])


def test_tables_have_no_colours_which_could_be_unreadable_in_a_dark_notebook():
    for made in MADE.values():
        assert set(re.findall(r'style="([^"]*)"', made()._repr_html_())) <= {"text-align: left", "text-align: right"}
