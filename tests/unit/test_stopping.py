"""The stop rule: when it measures, what it decides by that, and what it leaves as it was."""

import copy
import io
import json
import warnings
from contextlib import nullcontext

import pytest
import torch
from helpers import refuses
from mlps import Noisy
from torch import nn
from torch.nn.functional import l1_loss

from auxnas_layers import AuxG, AuxiliaryWarning, AuxNASWrapper, Inputs, SearchError, StopRule
from auxnas_layers.alignment import Alignment

X = torch.ones(2, 2)
GOOD, BAD = [0.1, 0.3], [-0.3, 0.2]


def net(width: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 1))


def wrap(names: object = None, **options: object) -> AuxNASWrapper:
    auxes = {name: net() for name in names} if names else net()
    taps = {name: ["0"] for name in names} if names else ["0"]
    return AuxNASWrapper(net(), auxes, taps, example_inputs=X, **options)


def told(wrapper: nn.Module, held_out: object, names: object = None, **options: object) -> StopRule:
    """A rule that measures what the batches say: the cosines of training batches, the shares of held-out ones."""
    weight = wrapper.primary_net[0].weight

    def aux_loss(number: int) -> object:
        def loss(outputs: object, batch: object) -> torch.Tensor:
            values, kind = batch[1][:, number], batch[2]
            if kind == "held out":
                return values[0]
            return weight[0, 0] * values[0] + weight[0, 1] * (1 - values[0] ** 2) ** 0.5

        return loss

    losses = {name: aux_loss(number) for number, name in enumerate(names)} if names else aux_loss(0)
    return StopRule(wrapper, held_out, primary_loss=lambda *_: 3 * weight[0, 0], aux_loss=losses, **options)


def held_out_of(*shares: float) -> tuple[object, ...]:
    """A held-out batch on which the auxiliaries explain these shares."""
    return X, torch.tensor([[1 - share for share in shares], [1.0] * len(shares)]), "held out"


def batch_of(*cosines: float) -> tuple[object, ...]:
    return X, torch.tensor([list(cosines)] * 2), "train"


def run(rule: StopRule, cosines: object, steps: int = 60, start: int = 0, end: int | None = None) -> list[object]:
    """What the rule says at every step; the cosines of auxiliaries in turn, each in turn from its list."""
    return [
        rule.step(step / steps, batch_of(*(values[step % len(values)] for values in cosines)))
        for step in range(start, end or steps)
    ]


# When it measures


@pytest.mark.parametrize("steps, count, shares", [(60, 30, 6), (600, 30, 6), (40, 20, 4), (25, 13, 2)])
def test_it_measures_thirty_times_up_to_half_and_shares_in_the_second_tenth(steps, count, shares):
    rule = told(wrap(), [held_out_of(0.5)])
    assert run(rule, [GOOD], steps) == [("aux",)] * steps
    assert len(rule.alignment.cosines["aux"]) == count and len(rule.explained["aux"]) == shares
    torch.testing.assert_close(rule.explained["aux"], [0.5] * shares)


def test_its_times_and_numbers_are_arguments():
    rule = told(wrap(), [held_out_of(0.5)], measurements=16, learned_by=0.25, until=0.5, explains=0.4)
    measured = []
    for step in range(64):
        before = len(rule.alignment.cosines.get("aux", ())), len(rule.explained["aux"])
        run(rule, [GOOD], 64, step, step + 1)
        after = len(rule.alignment.cosines["aux"]), len(rule.explained["aux"])
        if after != before:
            measured.append((step, after[1] - before[1]))
    assert measured == [(step, int(8 <= step < 16)) for step in range(0, 32, 2)]
    assert rule.going_on == ("aux",)
    rule = told(wrap(), [held_out_of(0.5)], explains=0.6, learned_by=0.5)
    assert [len(names) for names in run(rule, [GOOD], 20)] == [1] * 10 + [0] * 10


def test_it_measures_on_other_held_out_samples_each_time():
    rule = told(wrap(), [held_out_of(0.1 * number) for number in range(5)])
    run(rule, [GOOD], 60)
    torch.testing.assert_close(rule.explained["aux"], [0.1, 0.2, 0.3, 0.4, 0.0, 0.1])  # the seventh, and five more


def test_steps_of_accumulated_gradients_are_measured_once():
    wrapper = wrap()
    rule = told(wrapper, [held_out_of(0.5)])
    wrapper(X).primary.sum().backward()
    before = {name: None if p.grad is None else p.grad.clone() for name, p in wrapper.named_parameters()}
    for step in range(120):
        run(rule, [GOOD], 120, step, step + 1)
        run(rule, [GOOD], 120, step, step + 1)
    assert len(rule.alignment.cosines["aux"]) == 30
    for name, parameter in wrapper.named_parameters():
        assert (parameter.grad is None) == (before[name] is None)
        assert parameter.grad is None or torch.equal(parameter.grad, before[name])


# What it decides


@pytest.mark.parametrize(
    "cosines, shares, stopped",
    [
        (GOOD, [0.5], None),
        (GOOD, [0.0, 0.05], None),
        (GOOD, [0.01, 0.02], 0.2),
        (BAD, [0.0], 0.2),
        (BAD, [0.5], 0.5),
        ([-0.14, 0.3], [0.5], None),
        ([0.0], [0.5], 0.5),
    ],
)
def test_an_auxiliary_goes_on_if_it_is_learned_and_aligned(cosines, shares, stopped):
    rule = told(wrap(), [held_out_of(share) for share in shares])
    said = run(rule, [cosines])
    assert said == [("aux",) if stopped is None or step < 60 * stopped else () for step in range(60)]
    assert rule.verdicts["aux"].stopped_at == stopped and rule.verdicts["aux"].goes_on is (stopped is None)
    assert len(rule.alignment.cosines["aux"]) == (12 if stopped == 0.2 else 30)


def test_several_auxiliaries_are_judged_one_by_one_and_the_rule_prints_why():
    rule = told(wrap("abc"), [held_out_of(0.5, 0.0, 0.5)], "abc")
    said = run(rule, [BAD, GOOD, GOOD])
    assert said == [("a", "b", "c")] * 12 + [("a", "c")] * 18 + [("c",)] * 30
    assert repr(rule).splitlines() == ["StopRule(", *(f"  {n}: {v}" for n, v in rule.verdicts.items()), ")"]
    starts = ["a: stopped at 0.5: explains 50.0 %", "b: stopped at 0.2: explains 0.0 %", "c: goes on: explains 50.0 %"]
    assert all(start in line for start, line in zip(starts, repr(rule).splitlines()[1:-1], strict=True))


def test_edges_into_the_primary_close_once_nothing_goes_on():
    wrapper = wrap("ab")
    rule = told(wrapper, [held_out_of(0.0, 0.5)], "ab")
    run(rule, [GOOD, BAD], end=30)
    inward = [edge for edge in wrapper.architecture() if edge.direction.inward]
    assert rule.going_on == ("b",) and all(edge.open for edge in inward)  # b may still send
    run(rule, [GOOD, BAD], start=30)
    assert rule.going_on == () and wrapper.export_primary() is not None
    assert wrapper.export_report.exact


def test_an_auxiliary_that_is_removed_is_no_longer_measured():
    wrapper = wrap("ab")
    rule = told(wrapper, [held_out_of(0.5, 0.0)], "ab")
    for step in range(60):
        if "b" not in run(rule, [GOOD, BAD], 60, step, step + 1)[0] and "b" in wrapper.aux_net:
            wrapper.remove_aux_("b", allow_open=True)
    assert {name: len(found) for name, found in rule.alignment.cosines.items()} == {"a": 30, "b": 13}
    assert rule.going_on == ("a",)
    wrapper = wrap("ab")
    rule = told(wrapper, [held_out_of(0.5, 0.5)], "ab")
    wrapper.remove_aux_("a", allow_open=True)  # by hand, before it is judged
    assert run(rule, [GOOD, GOOD]) == [("b",)] * 60 and list(rule.alignment.cosines) == ["b"]


def test_decisions_are_final():
    rule = told(wrap(), [held_out_of(0.0)])
    assert run(rule, [GOOD], end=13)[-1] == () == run(rule, [GOOD], end=1)[0] == rule.decide(0.0)


def test_deciding_measures_nothing():
    rule = told(wrap(), [held_out_of(0.0)])
    assert rule.decide(0.1) == ("aux",) and not rule.alignment.cosines
    run(rule, [GOOD], end=12)
    assert rule.decide(0.2) == ()


# Too few measurements


@pytest.mark.parametrize("times", [[0.0, 0.15, 0.6], [0.6], [step / 18 for step in range(18)]])
def test_with_too_few_measurements_at_half_it_goes_on_with_one_warning(times):
    rule = told(wrap(), [held_out_of(0.5)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for progress in times:
            rule.step(progress, batch_of(-0.5))
        rule.decide(0.7)
    assert rule.going_on == ("aux",)
    (one,) = caught
    count = len([progress for progress in times if progress < 0.5])
    assert one.category is AuxiliaryWarning and one.filename == __file__
    assert f"has {count} measurements of 'aux' at 0.5 of training, fewer than 10, and lets it go on" in str(one.message)


def test_a_jump_over_a_deadline_is_judged_by_what_was_measured_before():
    rule = told(wrap(), [held_out_of(0.0)])
    for progress in (0.0, 0.15):
        rule.step(progress, batch_of(0.1))
    assert rule.step(0.9, batch_of(0.1)) == ()
    rule = told(wrap(), [held_out_of(0.0)])
    run(rule, [BAD], end=6)
    rule.explained["aux"].clear()
    assert rule.step(0.3, batch_of(0.1)) == ("aux",)  # no share was measured


def test_without_a_least_share_only_cosines_decide():
    rule = told(wrap(), [(X, -torch.ones(2, 1), "held out")], explains=None)  # a negative loss has no share
    assert run(rule, [GOOD])[-1] == ("aux",) and not rule.explained["aux"]
    assert "no explained share measured" in str(rule)


# Resuming


@pytest.mark.parametrize("cosines", [GOOD, BAD])
@pytest.mark.parametrize("end", [1, 9, 12, 13, 29, 30, 31, 50])
def test_a_resumed_rule_says_the_same(end, cosines):
    held_out = [held_out_of(0.05 * number, 0.01) for number in range(4)]
    whole, first, second = (told(wrap("ab"), held_out, "ab") for _ in range(3))
    said = run(whole, [cosines, GOOD])
    run(first, [cosines, GOOD], end=end)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    run(first, [cosines, GOOD], start=end)  # what was saved does not change with it
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert run(second, [cosines, GOOD], start=end) == said[end:]
    assert second.state_dict() == whole.state_dict() == first.state_dict() and repr(second) == repr(whole)


def test_a_state_goes_through_json_with_its_names_in_another_order():
    first, second = (told(wrap("ba"), [held_out_of(0.5, 0.0)], "ba") for _ in range(2))
    run(first, [GOOD, BAD], end=20)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), sort_keys=True)))
    assert second.state_dict() == first.state_dict() and repr(second) == repr(first)


def test_a_state_does_not_change_with_its_rule():
    rule = told(wrap(), [held_out_of(0.0)])
    run(rule, [GOOD], end=8)
    state = rule.state_dict()
    before = copy.deepcopy(state)
    run(rule, [GOOD], start=8)
    assert state == before != rule.state_dict()


def test_the_state_of_other_auxiliaries_is_refused():
    rule, other = told(wrap("ab"), [held_out_of(0.5, 0.5)], "ab"), told(wrap(), [held_out_of(0.5)])
    message = "the state is of the auxiliaries ['aux'], the rule of ['a', 'b']; make the rule with the same aux_loss"
    refuses(SearchError, message, rule.load_state_dict, other.state_dict())


# Real losses


def by_l1(wrapper: nn.Module, held_out: object, **options: object) -> StopRule:
    """For batches of inputs, primary and auxiliary labels."""
    losses = {"primary_loss": lambda y, batch: l1_loss(y, batch[1]), "aux_loss": lambda y, batch: l1_loss(y, batch[2])}
    return StopRule(wrapper, held_out, **(losses | options))


def a_batch(samples: int = 8) -> tuple[torch.Tensor, ...]:
    x = torch.randn(samples, 2)
    return x, x.sum(1, keepdim=True), x.prod(1, keepdim=True)


def test_measuring_leaves_no_trace():
    wrapper = AuxNASWrapper(Noisy(), Noisy(), ["first", "norm"], example_inputs=X)
    wrapper.aux_net.norm.eval()  # as frozen norms are
    rule, batch = by_l1(wrapper, [a_batch(), a_batch()]), a_batch()
    state = copy.deepcopy(wrapper.state_dict())
    flags, random = {module: module.training for module in wrapper.modules()}, torch.get_rng_state()
    for step in range(12):
        rule.step(step / 60, batch)
    assert len(rule.alignment.cosines["aux"]) == 12 and len(rule.explained["aux"]) == 6
    assert {module: module.training for module in wrapper.modules()} == flags
    assert all(torch.equal(value, wrapper.state_dict()[key]) for key, value in state.items() if torch.is_tensor(value))
    assert torch.equal(torch.get_rng_state(), random) and all(p.grad is None for p in wrapper.parameters())


@pytest.mark.parametrize("noise", [False, True])
def test_it_stops_an_auxiliary_that_cannot_be_learned_and_keeps_a_true_one(noise):
    truth = torch.randn(16, 1)
    primary = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1))
    wrapper = AuxNASWrapper(primary, copy.deepcopy(primary), ["0"], example_inputs=torch.ones(2, 16))

    def sample() -> tuple[torch.Tensor, ...]:
        x = torch.randn(256, 16)
        labels = x @ truth
        return x, labels, torch.randn(256, 1) if noise else labels

    rule, few = by_l1(wrapper, [sample() for _ in range(16)]), sample()
    optimiser = torch.optim.Adam(wrapper.parameters(), lr=3e-3)
    for step in range(120):
        batch = sample()
        if rule.step(step / 120, batch):
            aux = l1_loss(wrapper(batch[0]).aux, batch[2])
            loss = l1_loss(wrapper(few[0][:8]).primary, few[1][:8]) + aux + wrapper.search_penalty(step / 120)
        else:
            loss = l1_loss(wrapper.primary_net(few[0][:8]), few[1][:8])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert rule.verdicts["aux"].stopped_at == (0.2 if noise else None), rule
    assert wrapper.export_primary() is not None and wrapper.export_report.exact


def test_it_measures_what_alignment_and_explained_loss_do():
    wrapper = AuxNASWrapper(net(8), net(8), ["0"], example_inputs=X)
    held_out, batch = a_batch(), a_batch()
    rule, alignment = by_l1(wrapper, [held_out]), Alignment(wrapper)
    rule.step(0.1, batch)
    alignment.measure(
        lambda: l1_loss(wrapper.primary_net(held_out[0]), held_out[1]), lambda: l1_loss(wrapper(batch[0]).aux, batch[2])
    )
    assert rule.alignment.cosines == alignment.cosines
    outputs = wrapper.eval()(held_out[0]).aux
    share = 1 - l1_loss(outputs, held_out[2]) / l1_loss(outputs, held_out[2].roll(5, 0))
    assert rule.explained["aux"] == [pytest.approx(share.item())]


def test_a_network_with_two_heads_has_a_rule_too():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.primary_net, self.head = net(4), nn.Linear(4, 1)

        def forward(self, x):
            features = self.primary_net[:2](x)
            return self.primary_net[2:](features), {"any": self.head(features)}

    rule = by_l1(Heads(), [a_batch()], aux_loss={"any": lambda y, batch: l1_loss(y, batch[2])})
    for step in range(60):
        rule.step(step / 60, a_batch())
    assert rule.verdicts["any"].shares and rule.verdicts["any"].cosines


def test_inputs_are_what_the_user_says_they_are():
    """Keywords of the primary, and the auxiliary's own; labels by name."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net(4)

        def forward(self, x, scale):
            return self.body(x) * scale

    def inputs(batch: object) -> Inputs:
        seen.append(batch)
        return Inputs((batch["x"],), {"scale": 2.0, "aux_inputs": (batch["x"] + 1,)})

    seen, taps = [], [("body.0", "0")]
    x = a_batch()[0]
    wrapper = AuxNASWrapper(Scaled(), net(4), taps, example_inputs=inputs({"x": x}), search=AuxG())
    losses = {"primary_loss": lambda y, batch: l1_loss(y, batch["p"]), "aux_loss": lambda y, b: l1_loss(y, b["a"])}
    held_out, batch = ({"x": x, "p": x[:, :1], "a": x[:, 1:], "name": "one"} for x in (x, a_batch()[0]))
    rule = StopRule(wrapper, [held_out], inputs=inputs, **losses)
    rule.step(0.1, batch)
    assert [one["x"] is held_out["x"] for one in seen[1:]] == [True, True, False]  # share; primary; auxiliary
    assert len(rule.alignment.cosines["aux"]) == len(rule.explained["aux"]) == 1


def test_labels_of_others_may_be_given():
    held_out = (*a_batch()[:2], [torch.ones(3), torch.zeros(1)])  # as many as each sample has

    def loss(outputs: torch.Tensor, batch: object) -> torch.Tensor:
        return torch.stack([(outputs.mean() - one.mean()).abs() for one in batch[2]]).mean() + batch[3:].count("other")

    rule = by_l1(wrap(), [held_out], aux_loss=loss, other_labels=lambda batch: (*batch, "other"))
    rule.step(0.1, held_out)
    assert 0 < rule.explained["aux"][0] < 1
    with pytest.raises(SearchError, match="other_labels="):
        by_l1(wrap(), [held_out], aux_loss=loss).step(0.0, held_out)  # at once, not at a tenth


# Precision


@pytest.mark.parametrize("dtype, measured_in", [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_it_measures_outside_autocast_where_gradients_would_vanish(dtype, measured_in):
    wrapper, seen = AuxNASWrapper(net(16), net(16), ["0"], search=AuxG(own_share=0.0), example_inputs=X), []

    def tiny(y: torch.Tensor, batch: object) -> torch.Tensor:
        seen.append(y.dtype)
        return 1e-9 * y.square().mean()

    held_out, batch = [a_batch()], a_batch()
    tiny_rule, rule = (by_l1(wrapper, held_out, aux_loss=loss) for loss in (tiny, lambda *x: 1e9 * tiny(*x)))
    rule.step(0.0, batch)
    del seen[:]
    with torch.autocast("cpu", dtype):
        tiny_rule.step(0.0, batch)
    assert set(seen) == {measured_in}
    (found,), (wanted,) = tiny_rule.alignment.cosines["aux"], rule.alignment.cosines["aux"]
    assert abs(wanted) > 0.05 and found == pytest.approx(wanted, abs=0.02)


def test_an_autocast_around_the_step_is_as_before():
    rule = by_l1(wrap(), [a_batch()])
    for enabled in (True, False):
        with torch.autocast("cpu", torch.float16) if enabled else nullcontext():
            rule.step(0.0, a_batch())
            assert torch.is_autocast_enabled("cpu") is enabled


# Errors


def test_a_wrapper_in_eval_mode_is_refused():
    wrapper = wrap()
    rule = by_l1(wrapper.eval(), [a_batch()])
    refuses(
        SearchError, "the wrapper is in eval mode; measure in train mode: wrapper.train()", rule.step, 0.0, a_batch()
    )
    assert not rule.alignment.cosines


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan"), 7])
def test_progress_is_a_share(progress):
    with pytest.raises(SearchError, match="progress is the share of training that is done, in"):
        by_l1(wrap(), [a_batch()]).step(progress, a_batch())


@pytest.mark.parametrize(
    "losses, message",
    [
        ({"aux_loss": lambda y, batch: -y.square().mean() - 1}, "not negative; found -"),
        ({"aux_loss": lambda y, batch: y.mean() * float("nan")}, "not negative; found nan"),
        ({"aux_loss": lambda y, batch: y.mean() * float("nan"), "explains": None}, "aux is nan; check"),
        ({"primary_loss": lambda y, batch: y.mean() * float("inf")}, "primary_loss is inf; check"),
    ],
)
def test_a_loss_that_cannot_be_measured_is_refused_at_the_first_step(losses, message):
    with pytest.raises(SearchError, match=message):
        by_l1(wrap(), [a_batch()], **losses).step(0.0, a_batch())


def test_what_cannot_be_a_rule_is_refused_when_it_is_made():
    def loss(y: torch.Tensor, batch: object) -> torch.Tensor:
        return y.mean()

    for wrapper, losses, message in (
        (wrap(), {"a": loss}, "aux_loss is one loss, as there is one auxiliary; found losses of ['a']"),
        (wrap("ab"), loss, "aux_loss is a mapping with a loss for each of ['a', 'b']; found one loss"),
        (wrap("ab"), {"a": loss}, "aux_loss is a mapping with a loss for each of ['a', 'b']; found losses of ['a']"),
        (
            nn.Sequential(wrap()),
            loss,
            "StopRule takes the wrapper, or another module that has a primary_net; found a Sequential. Where it is "
            "inside another one, as in DistributedDataParallel, give the inner one: StopRule(ddp.module, ...)",
        ),
    ):
        refuses(SearchError, message, StopRule, wrapper, [1], primary_loss=loss, aux_loss=losses)
    with pytest.raises(SearchError, match="a verdict takes 10 measurements; give measurements=10 or more, not 9"):
        by_l1(wrap(), [1], measurements=9)
    for times in ({"learned_by": 0.0}, {"until": 0.1}, {"until": 1.1}):
        with pytest.raises(SearchError, match=r"by shares of training in \(0, 1\]; found learned_by="):
            by_l1(wrap(), [1], **times)
    with pytest.raises(SearchError, match="a tuple or list; found a dict. Say where they are: StopRule"):
        by_l1(wrap(), [{"x": X}]).step(0.0, {"x": X})
