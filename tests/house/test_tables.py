"""Published tables are what their scripts print."""

import pytest
from helpers import ROOT

SCRIPTS = [
    ("benchmarks/speed/steps.py", "guides/cost.md"),
    ("benchmarks/speed/bench.py", "guides/cost.md"),
    ("benchmarks/speed/parts.py", "guides/cost.md"),
    ("tests/models/table.py", "help/supported.md"),
]


@pytest.mark.parametrize("script, document", SCRIPTS)
def test_a_published_table_is_what_its_script_prints(script, document, printed):
    found = printed(script, *([] if script.startswith("tests/") else ["--table"]))
    text = (ROOT / "docs" / document).read_text()
    assert all(block in text for block in found.strip().split("\n\n"))
    assert found.count("\n") >= 6
