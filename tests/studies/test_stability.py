"""The stability study: gates watched over training."""

import pytest
import stability

pytestmark = pytest.mark.filterwarnings("ignore:evaluated with")  # what open edges do is what the study watches


@pytest.fixture(scope="module")
def results():
    return [
        {"method": way, "seed": seed} | stability.run({"method": way, "seed": seed}, fast=True)
        for way in stability.WAYS
        for seed in (0, 1)
    ]


def test_every_way_is_watched_exported_and_drawn(results, tmp_path, capsys):
    for result in results:
        steps = len(result["progress"])
        assert steps == len(result["errors"]) == len(result["gates"]) == 20
        assert not any(result["gates"][-1]) and result["difference"] < 1e-5
    stability.draw(results, tmp_path / "stability.png")
    stability.print_table(results)
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + len(stability.WAYS)


def test_gates_that_agree_over_seeds_have_correlation_one():
    alike = [{"towards": {"a": 0.1, "b": 0.5, "c": high}} for high in (0.9, 0.9, 0.9)]
    assert stability.likeness(alike) == pytest.approx(1)
    assert stability.likeness([*alike[:1], {"towards": {"a": 0.9, "b": 0.5, "c": 0.1}}]) == pytest.approx(-1)
