"""What the training step of each method costs."""

import cost
from methods import LIGHT, OURS, SINGLE


def test_every_method_takes_its_turns_and_two_networks_cost_more_than_a_head():
    times = cost.measure(rounds=2, steps=4, fast=True)
    assert list(times) == [*cost.MEASURED, cost.RULE] and all(len(kept) == 2 for kept in times.values())
    assert min(times[OURS]) > min(times[LIGHT]) > min(times[SINGLE]) > 0
    assert min(times[cost.RULE]) > 0


def test_the_rule_is_timed_to_its_end_whatever_it_finds(monkeypatch):
    made, watch = [], cost.RuleWatch
    monkeypatch.setattr(cost, "RuleWatch", lambda *args, **options: made.append(watch(*args, **options)) or made[-1])
    assert cost.rule_seconds(cost.load(cost.MAIN[0], True), 40) > 0
    (rule,) = (watch.rule for watch in made)
    assert len(rule.alignment.cosines["segmentation"]) == 30 and rule.going_on == ("segmentation",)


def test_ratios_are_those_within_a_round(capsys):
    cost.print_table({SINGLE: [1.0, 2.0, 10.0], OURS: [3.0, 8.0, 20.0]})
    assert capsys.readouterr().out.splitlines()[2:4] == [
        f"| {SINGLE} | 1.0x | 1.0 to 1.0 |",
        f"| {OURS} | 3.0x | 2.0 to 4.0 |",
    ]
