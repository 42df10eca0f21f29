"""What docs/results.md says of the studies is what their commands print, from runs that they ask for."""

import json
import re

import cost
import pictures
import pytest
import runs
import sizes
import stability
import studies
from tables import TABLES
from test_methods import ROOT
from training import is_learned

RESULTS = (ROOT / "docs" / "results.md").read_text()


@pytest.fixture(scope="module")
def found():
    return runs.read()


@pytest.mark.parametrize("study", studies.STUDIES)
def test_published_tables_are_printed_by_their_command(study, found, capsys):
    TABLES[study](studies.STUDIES[study](), found)
    printed = [block for block in capsys.readouterr().out.strip().split("\n\n") if block]
    assert printed
    for block in printed:
        assert block in RESULTS, f"run.py {study} --table prints another table than docs/results.md has:\n{block}"


def test_the_readme_quotes_a_table_of_the_results():
    tables = re.findall(r"(?:^\|.*\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert tables and all(table in RESULTS for table in tables)


def test_every_run_belongs_to_a_study(found):
    asked = set()
    for make_cells in studies.STUDIES.values():
        for cell in make_cells():
            asked.update(cell.trials())
            if all(run in found for run in cell.trials()):
                asked.update(cell.runs(found))
    assert not found.keys() - asked


def test_permuted_labels_are_found_out_and_true_ones_not_taken_for_them_but_in_two_runs(found):
    watched = [(run, share) for run in found for share in found[run].get("explained", {}).values()]
    assert len(watched) > 100 and {run.regime.control for run, _ in watched} == {"", "permuted", "too strong"}
    wrong = [run for run, shares in watched if is_learned(shares) == (run.regime.control == "permuted")]
    assert {(run.problem, run.regime.control, run.seed) for run in wrong} == {
        ("segmentation <- depth", "permuted", 2),
        ("depth <- segmentation + normals + outlines", "", studies.TUNING_SEED),
    }
    assert len(wrong) == 2


def test_the_pictures_are_drawn(found, tmp_path):
    pictures.draw_main(found, tmp_path / "main.png")
    pictures.draw_problems(found, tmp_path / "problems.png")
    pictures.draw_labels(found, tmp_path / "labels.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("main.png", "problems.png", "labels.png"))


def test_the_published_costs_are_printed_by_their_command(capsys):
    cost.print_table(json.loads(cost.FILE.read_text()))
    assert capsys.readouterr().out.strip() in RESULTS


def test_the_published_stability_is_printed_by_its_command(capsys):
    stability.print_table(json.loads((ROOT / "docs" / "results" / "stability.json").read_text()))
    assert capsys.readouterr().out.strip() in RESULTS


def test_the_published_sizes_are_printed_by_their_command(capsys):
    sizes.print_table(json.loads(sizes.FILE.read_text()))
    assert capsys.readouterr().out.strip() in RESULTS
