"""Documents, docstrings and messages use the field's words, the same everywhere (docs/help/glossary.md)."""

import ast
import re
from pathlib import Path

import pytest
from helpers import ROOT

INSTEAD = {
    r"hears?|heard|hearing": "receives, source",
    r"on trial|trial calls?": "dry run",
    r"hands? on|handed on": "returns, passes on",
    r"taken out": "exported",
    r"by itself": "alone, separately",
}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted((ROOT / "auxnas_layers").rglob("*.py"))


def prose(path: Path) -> str:
    """The text of a document, or the strings of a module, docstrings too; in one line each."""
    text = path.read_text()
    if path.suffix == ".py":
        constants = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
        text = "\n\n".join(value for value in constants if isinstance(value, str))
    return re.sub(r"[ \t]*\n[ \t]*(?=\S)", " ", text)


def private_words(text: str) -> list[str]:
    """Each private word of a text with what surrounds it, and what to write instead."""
    return [
        f"...{text[max(0, found.start() - 30) : found.end() + 30]!r}: write {instead}"
        for words, instead in INSTEAD.items()
        for found in re.finditer(rf"\b(?:{words})\b", text, re.I)
    ]


@pytest.mark.parametrize("path", [*DOCUMENTS, *MODULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_word_stands_where_the_field_has_its_own(path):
    assert not private_words(prose(path))


def test_private_words_are_found_across_lines_and_in_strings_alone(tmp_path):
    document, module = tmp_path / "page.md", tmp_path / "module.py"
    document.write_text("The auxiliary hears it. A network that is taken\nout works by\n  itself.\n")
    module.write_text('"""Runs on\n    trial."""\nhear = f"{1} hands on"  # it hears\n')
    assert [found.rpartition(": write ")[2] for found in private_words(prose(document))] == [
        "receives, source",
        "exported",
        "alone, separately",
    ]
    assert [found.rpartition(": write ")[2] for found in private_words(prose(module))] == [
        "dry run",
        "returns, passes on",
    ]
    assert not private_words("The network receives features, and is exported alone. It could not be overheard.")
