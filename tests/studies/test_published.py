"""What docs/results says of the studies is what their commands print, from runs that they ask for."""

import json
import re
import subprocess
import sys

import budgets
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

PAGES = ROOT / "docs" / "results"
RESULTS = "\n".join(path.read_text() for path in sorted(PAGES.glob("*.md")))
SCRIPTS = "starts", "baselines", "entropy", "auxiliaries", "batches", "scales", "warm", "ranking", "budgets"
UNPRINTED = {
    "| seed | single-task | Aux-NAS, exported | difference |": "demo.md",
    "| | parameters | FLOPs a forward (one frame) |": "demo.md",
    "| command | single-task | Aux-NAS, exported | difference |": "demo.md",
    "| name in tables | what it is |": "protocol.md",
}
"""Tables by their first line: of `make demo`, whose trainings end elsewhere on another processor, and of words."""
QUOTING = PAGES / "index.md", PAGES / "reviewers.md", ROOT / "docs" / "start" / "should-i-use-this.md"
"""Pages of conclusions, whose figures link to their tables."""


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


def test_every_table_is_printed_by_a_command(found, capsys, tmp_path):
    for study, make_cells in studies.STUDIES.items():
        TABLES[study](make_cells(), found)
    for module, file in ((cost, cost.FILE), (sizes, sizes.FILE), (stability, cost.FILE.with_name("stability.json"))):
        module.print_table(json.loads(file.read_text()))
        print()
    printed = tables(capsys.readouterr().out + "\n".join(said(script, tmp_path) for script in SCRIPTS))
    published = tables(RESULTS)
    assert len(published) > 30
    for table in published:
        assert table in printed or table.splitlines()[0] in UNPRINTED, f"no command prints this table:\n{table}"


def test_tables_that_no_table_command_prints_are_on_their_pages_once():
    for head, page in UNPRINTED.items():
        found = [table for table in tables(RESULTS) if table.splitlines()[0] == head]
        assert len(found) == 1 and found[0] in tables((PAGES / page).read_text())


def tables(text):
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


def sections(page):
    """Text under each heading of the second level, by its anchor; all of it under the anchor that is empty."""
    parts = re.split(r"(?m)^## (.*)\n", page.read_text())
    anchors = (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in parts[1::2])
    return {"": page.read_text(), **dict(zip(anchors, parts[2::2], strict=True))}


@pytest.mark.parametrize("page", QUOTING, ids=lambda page: page.stem)
def test_figures_stand_in_the_section_of_the_results_to_which_they_link(page):
    links = re.findall(r"\[([^][]*\d[^][]*)\]\(([^)#]+\.md)#?([^)]*)\)", page.read_text())
    assert len(links) > 4
    for text, target, anchor in links:
        section = sections(page.parent / target)[anchor]
        for figure in re.findall(r"\d+(?:\.\d+)?", text):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\.?\d)", section), (
                f"{figure} is not in {target}#{anchor}"
            )


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
    searches, anew = (json.loads((PAGES / f"budgets{end}.json").read_text()) for end in ("", "_retrained"))
    budgets.draw(budgets.Found.of(searches, anew), tmp_path / "budgets.png")
    drawn = "main.png", "problems.png", "labels.png", "budgets.png"
    assert all((tmp_path / name).stat().st_size > 10_000 for name in drawn)


def test_the_published_costs_are_printed_by_their_command(capsys):
    cost.print_table(json.loads(cost.FILE.read_text()))
    assert capsys.readouterr().out.strip() in RESULTS


def test_the_published_stability_is_printed_by_its_command(capsys):
    stability.print_table(json.loads((ROOT / "docs" / "results" / "stability.json").read_text()))
    assert capsys.readouterr().out.strip() in RESULTS


def test_the_published_sizes_are_printed_by_their_command(capsys):
    sizes.print_table(json.loads(sizes.FILE.read_text()))
    assert capsys.readouterr().out.strip() in RESULTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_published_table_is_what_its_script_prints(script, tmp_path):
    printed = said(script, tmp_path)
    assert all(block in RESULTS for block in printed.strip().split("\n\n")) and printed.count("\n") >= 8


def said(script, folder):
    """What a script prints of the results that are there."""
    command = [sys.executable, str(ROOT / "benchmarks" / "evidence" / f"{script}.py"), "--table"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout
