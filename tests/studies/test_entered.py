"""A method from outside: a class in a file of its own, trained and put into the table of the others."""

import json
import re
import sys

import entered
import pytest
import run
import runs
import studies
import torch
from methods import METHODS, SHARED, SINGLE
from tabular import SPEED_BY_GATE_TIME as FLIGHTS
from test_methods import QUICK, ROOT
from training import Regime, fit

MINE = """
from dataclasses import dataclass

import torch
from methods import SharedBackbone


@dataclass(frozen=True)
class Mine(SharedBackbone):
    share: float = 0.0

    def backward(self, model, losses):
        weights = {task: 1.0 if task == "primary" else self.share for task in losses}
        torch.stack([weights[task] * loss for task, loss in losses.items()]).sum().backward()


@dataclass(frozen=True)
class Whole(Mine):
    share: float = 1.0
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path / 'mine.py'}:"


def test_a_class_is_trained_as_the_methods_that_are_known(mine):
    data = FLIGHTS.load(True)["train"]

    def trained(method):
        return torch.cat([p.flatten() for p in fit(FLIGHTS, method, data, Regime(16, True), QUICK, 0).parameters()])

    shared = trained(METHODS[SHARED])
    assert torch.equal(trained(entered.enter(mine + "Whole")), shared)
    assert not torch.equal(trained(entered.enter(mine + "Mine")), shared)


def test_the_class_of_the_documents_is_trained_under_a_light_auxiliary_loss(tmp_path):
    document = (ROOT / "docs" / "results" / "protocol.md").read_text()
    (code,) = re.findall(r"^```py\n(.*?)^```", document, re.S | re.M)
    (tmp_path / "mine.py").write_text(code)
    method = entered.enter(str(tmp_path / "mine"))
    weight = torch.ones((), requires_grad=True)
    method.backward(torch.nn.Identity(), {"primary": 2 * weight, "flight": 30 * weight})
    assert weight.grad.item() == pytest.approx(5)
    data = FLIGHTS.load(True)["train"]
    assert all(p.isfinite().all() for p in fit(FLIGHTS, method, data, Regime(16, True), QUICK, 0).parameters())


def asked(monkeypatch, *options):
    cells = [studies.Cell(FLIGHTS.name, SINGLE, studies.FEW)]
    monkeypatch.setattr(studies, "STUDIES", {"main": lambda: cells, "few": lambda: cells})
    monkeypatch.setattr(studies, "TRIALS", studies.TRIALS)  # --fast changes these three
    monkeypatch.setattr(studies, "MANY", studies.MANY)
    monkeypatch.setattr(studies, "BETWEEN", studies.BETWEEN)
    monkeypatch.setattr(sys, "argv", ["run.py", *options, "--workers", "1"])
    run.main()


def test_a_class_gets_a_row_beside_the_others(mine, monkeypatch, capsys):
    asked(monkeypatch, "main", "--fast", "--method", f"{mine}Mine")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {SINGLE}", f"| {mine}Mine"]
    assert all("2 seeds" in row for row in rows) and " of 2" in rows[1]


def test_only_the_class_is_run_and_its_runs_are_kept_apart(mine, monkeypatch, capsys, tmp_path):
    published, kept = tmp_path / "runs.jsonl", tmp_path / "data" / "entered.jsonl"
    monkeypatch.setattr(run, "read", lambda file=published: runs.read(file))
    monkeypatch.setattr(entered, "FILE", kept)
    monkeypatch.setattr(run, "complete", lambda todo, fast, workers, file: runs.complete(todo, True, workers, file))
    monkeypatch.setattr(studies, "trials", lambda *cell: [runs.Run(*cell, QUICK, studies.TUNING_SEED, "validation")])
    asked(monkeypatch, "main", "--method", f"{mine}Mine", "--seeds", "2")
    assert f"| {mine}Mine | " in capsys.readouterr().out and not published.exists()
    done = [json.loads(line)["run"] for line in kept.read_text().splitlines()]
    assert [(run["method"], run["seed"]) for run in done] == [(f"{mine}Mine", seed) for seed in (100, 0, 1)]
    asked(monkeypatch, "main", "--method", f"{mine}Mine", "--table", "--seeds", "2")
    assert f"| {mine}Mine | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("our", r"known name, or a file that exists, as mine for mine.py or path/to/mine.py:Mine; found 'our'"),
        ("mine.py:Mine", r"a file that exists.*found 'mine.py:Mine'"),
        (
            "{}Their",
            r"a class Their that derives from methods.Method; found \['Mine', 'Whole'\]. Write: class Their\(Method\)",
        ),
        ("{}torch", r"derives from methods.Method; found \['Mine', 'Whole'\]"),
        (
            "{}",
            r"defines one class that derives from methods.Method; found \['Mine', 'Whole'\].*say which: .*mine.py:Mine",
        ),
    ],
)
def test_what_is_not_a_method_is_an_error_that_says_what_to_type(name, message, mine):
    with pytest.raises(ValueError, match=message):
        runs.method_named(name.replace("{}", mine))


def test_a_row_is_added_to_the_main_table_only(mine, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        asked(monkeypatch, "few", "--method", f"{mine}Mine")
    assert "--method adds a row to the table of main; found few: type main" in capsys.readouterr().err
