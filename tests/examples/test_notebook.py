"""The tutorial's notebook: its cells are those of the page, and it runs to the end."""

import re

import nbformat
from helpers import ROOT
from nbclient import NotebookClient
from nbformat import v4

PAGE, NOTEBOOK = ROOT / "docs" / "start" / "tutorial.md", ROOT / "examples" / "tutorial.ipynb"
LINK = re.compile(r"\[([^\]]+)\]\((?!http)[^)]+\)")  # to another page, which is not beside the notebook


def build() -> nbformat.NotebookNode:
    """The notebook of the page: a cell of code for each block, and a cell of text for what is between two."""
    parts = re.split(r"^```python\n(.*?)^```\n?", PAGE.read_text(), flags=re.S | re.M)
    cells = []
    for number, part in enumerate(part.strip() for part in parts):
        make = v4.new_code_cell if number % 2 else v4.new_markdown_cell
        if part:
            cells.append(make(part if number % 2 else LINK.sub(r"\1", part), id=f"cell-{number}"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def test_the_notebook_is_the_page():
    """If it differs, `python tests/examples/test_notebook.py` builds it anew."""
    assert nbformat.reads(NOTEBOOK.read_text(), as_version=4) == build()


def test_the_notebook_runs_and_shows_an_exact_export_and_a_gain():
    notebook = nbformat.reads(NOTEBOOK.read_text(), as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))
    assert "exported == primary: True" in printed
    pairs = re.findall(r"alone ([\d.]+) %, with the auxiliary ([\d.]+) %", printed)
    assert len(pairs) == 3
    assert sum(float(joined) for _, joined in pairs) < sum(float(alone) for alone, _ in pairs)


if __name__ == "__main__":
    nbformat.write(build(), NOTEBOOK)
