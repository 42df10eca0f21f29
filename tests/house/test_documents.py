"""Documents: their code runs, and what they name exists."""

import re
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from zoo import Cnn


def blocks(path: Path) -> list[tuple[str, int, str]]:
    """Code blocks of a document: language, line, text; of a diff, what it leads to."""
    text = path.read_text()
    found = []
    for match in re.finditer(r"^```(python|diff)\n(.*?)^```", text, re.S | re.M):
        code = match[2]
        if code.startswith("--8<--"):  # a whole example, which its own test runs
            continue
        if match[1] == "diff":
            code = "\n".join(line[1:] for line in code.splitlines() if not line.startswith("-"))
        found.append((match[1], text[: match.start()].count("\n"), code))
    return found


class Classifier(Cnn):
    def forward(self, x):
        return super().forward(x).mean((2, 3))


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_in_documents_runs(path, tmp_path, monkeypatch):
    """All blocks of one document, in order, in one namespace that has the names a user would have."""
    monkeypatch.chdir(tmp_path)
    found = blocks(path)
    assert found or path.name != "README.md", "no code blocks"
    images = torch.randn(4, 3, 8, 8)
    loader = [(images, torch.randint(2, (4,)), torch.randn(4, 2, 4, 4))] * 8
    names = {
        "torch": torch,
        "nn": torch.nn,
        "primary_net": Classifier(),
        "aux_net": Cnn(),
        "images": images,
        "loader": loader,
        "epochs": 2,
        "total_steps": len(loader),
        "cross_entropy": torch.nn.functional.cross_entropy,
        "l1": torch.nn.functional.l1_loss,
    }
    for _, line, code in found:
        exec(compile("\n" * (line + 1) + code, str(path), "exec"), names)


def test_documents_name_only_files_and_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for path in DOCUMENTS:
        text = path.read_text()
        for link in re.findall(r"\]\((?!http)([^)#\s]+)(?:#[^)]*)?\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
        for shown in re.findall(r'(?m)^--8<-- "([^":]+)', text):
            assert (ROOT / shown).exists(), f"{path.name}: {shown}"
        for target in re.findall(r"(?m)(?:^|`)make ([\w-]+)", text):
            assert f"\n{target}:" in makefile, f"{path.name}: make {target}"
