"""The page of errors has every message of the package, under the class that says it, and no other."""

import re

import pytest
from helpers import ROOT
from messages import Source, normal

PAGE = (ROOT / "docs/help/errors.md").read_text()
PLAIN = {"AttributeError", "TypeError", "ValueError", "note"}
WARNINGS = {"AuxNASWarning", "AuxiliaryWarning", "DeprecationWarning"}
MESSAGES = Source(ROOT / "auxnas_layers").messages()


def entries(page: str) -> list[tuple[str, str]]:
    """The section and the text of every entry: code in a heading of the fourth level, or in a line of lines."""
    section, found = "", []
    for line in (line.strip() for line in re.sub(r"\n(?![\n#])", " ", page).splitlines()):
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith(("#### ", "Lines: ")):
            own = line.split("` ")[0] + "`" if line.startswith("#### ") else line
            found += [(section, normal(text)) for text in re.findall("`(.*?)`", own)]
    return found


def sections(kinds: set[str]) -> set[str]:
    """Where a message of these classes may stand."""
    plain = {"Plain errors of Python"} if kinds & PLAIN else set()
    return kinds | plain | ({"Warnings"} if kinds & WARNINGS else set())


def begins(message: str, entry: str) -> bool:
    """Whether an entry is how a message begins, after names and numbers that are known only when it runs."""
    return re.sub(r"^(\W|tap\b)+", "", message).startswith(entry)


@pytest.mark.parametrize("message", sorted(MESSAGES))
def test_every_message_is_on_the_page_in_the_section_of_its_class(message):
    where = sections(MESSAGES[message])
    assert any(section in where and begins(message, entry) for section, entry in entries(PAGE)), (message, where)


@pytest.mark.parametrize("entry", entries(PAGE), ids=lambda entry: ": ".join(entry))
def test_every_entry_of_the_page_is_a_message(entry):
    section, text = entry
    assert any(section in sections(kinds) and begins(message, text) for message, kinds in MESSAGES.items())
    assert len(re.findall(r"\w{2,}", text)) > 1, "too short to find a message by"


def test_entries_are_on_the_page_once():
    found = entries(PAGE)
    assert len(found) == len(set(found)) > 100
