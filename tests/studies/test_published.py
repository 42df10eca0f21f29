"""What docs/results says of the studies is what their commands print, from runs that they ask for."""

import json
import re
import subprocess
import sys

import cost
import pictures
import pytest
import runs
import sizes
import stability
import studies
from tables import TABLES
from test_methods import ROOT

from auxnas_layers.verdict import is_learned

RESULTS = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "results").glob("*.md")))


@pytest.fixture(scope="module")
def found():
    return runs.read()


@pytest.mark.parametrize("study", studies.STUDIES)
def test_published_tables_are_printed_by_their_command(study, found, capsys):
    TABLES[study](studies.STUDIES[study](), found)
    printed = [block for block in capsys.readouterr().out.strip().split("\n\n") if block]
    assert printed
    for block in printed:
        assert block in RESULTS, f"run.py {study} --table prints another table than docs/results has:\n{block}"


def test_every_table_of_the_studies_is_printed_by_a_command(found, capsys):
    for study, make_cells in studies.STUDIES.items():
        TABLES[study](make_cells(), found)
    for module, file in ((cost, cost.FILE), (sizes, sizes.FILE), (stability, cost.FILE.with_name("stability.json"))):
        module.print_table(json.loads(file.read_text()))
        print()
    printed, published = capsys.readouterr().out, RESULTS[RESULTS.index("## Does it help?") :]
    assert len(tables(published)) > 20
    for table in tables(published):
        assert table in tables(printed), f"docs/results has a table that no command prints:\n{table}"


def tables(text):
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


def test_the_readme_quotes_a_table_of_the_results():
    quoted = tables((ROOT / "README.md").read_text())
    assert quoted and all(table in tables(RESULTS) for table in quoted)


def test_every_run_belongs_to_a_study(found):
    asked = set()
    for make_cells in studies.STUDIES.values():
        for cell in make_cells():
            asked.update(cell.trials())
            if all(run in found for run in cell.trials()):
                asked.update(cell.runs(found))
    assert not found.keys() - asked


def test_permuted_labels_are_found_out_and_true_ones_not_taken_for_them_but_in_five_runs(found):
    watched = [(run, share) for run in found for share in found[run].get("explained", {}).values()]
    assert len(watched) > 100 and {run.regime.control for run, _ in watched} == {"", "permuted", "too strong"}
    wrong = [run for run, shares in watched if is_learned(shares) == (run.regime.control == "permuted")]
    assert {(run.problem, run.regime.control, run.settings.aux_weight, run.seed) for run in wrong} == {
        ("segmentation <- depth", "permuted", 3, 2),
        ("normals <- segmentation", "permuted", 0.1, 0),
        ("normals <- segmentation", "permuted", 0.1, 1),
        ("normals <- segmentation", "permuted", 0.1, 4),
        ("depth <- segmentation + normals + outlines", "", 10, studies.TUNING_SEED),
    }
    assert len(wrong) == 5


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


@pytest.mark.parametrize("script", ["starts", "baselines", "entropy", "auxiliaries"])
def test_a_published_table_is_what_its_script_prints(script, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "evidence" / f"{script}.py"), "--table"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(block in RESULTS for block in done.stdout.strip().split("\n\n")) and done.stdout.count("\n") >= 8
