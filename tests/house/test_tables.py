"""Published tables are what their scripts print."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


def blocks(path: Path) -> list[tuple[str, int, str]]:
    """Code blocks of a document: language, line, text; of a diff, what it leads to."""
    text = path.read_text()
    found = []
    for match in re.finditer(r"^```(python|diff)\n(.*?)^```", text, re.S | re.M):
        code = match[2]
        if match[1] == "diff":
            code = "\n".join(line[1:] for line in code.splitlines() if not line.startswith("-"))
        found.append((match[1], text[: match.start()].count("\n"), code))
    return found


@pytest.mark.parametrize("study", ["starts", "baselines", "entropy", "auxiliaries"])
def test_a_published_table_is_what_its_command_prints(study, tmp_path):
    script = str(ROOT / "examples" / f"{study}.py")
    done = subprocess.run([sys.executable, script, "--table"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = (ROOT / "docs" / "results.md").read_text()
    blocks = done.stdout.strip().split("\n\n")
    assert all(block in results for block in blocks) and done.stdout.count("\n") >= 8


@pytest.mark.parametrize(
    "script, document",
    [
        ("tests/models/table.py", "supported.md"),
        ("benchmarks/bench.py", "performance.md"),
        ("benchmarks/parts.py", "performance.md"),
    ],
)
def test_a_published_table_is_what_its_script_prints(script, document, tmp_path):
    options = ["--table"] if script.startswith("benchmarks/") else []
    done = subprocess.run([sys.executable, str(ROOT / script), *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "docs" / document).read_text()
    assert len(done.stdout.strip().splitlines()) > 5
    assert all(block in text for block in done.stdout.strip().split("\n\n"))
