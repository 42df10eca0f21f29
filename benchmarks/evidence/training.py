"""A training run: the same data, loop, optimiser and schedule for every method."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from compositions import Composition
from methods import Losses, Method
from phases import Phase
from problem import Aux, Batch, Loss, Problem
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from auxnas_layers import AuxNASWrapper, StopRule

AS_THEY_COME = Composition()
GATE_LEARNING_RATE = 1e-2
TOO_STRONG = 10.0
HELD_OUT = 600


@dataclass(frozen=True)
class Regime:
    """Which labels there are.

    Args:
        labels: Training samples that carry the primary label; 0: all that have one.
        plenty: Whether all training samples carry the auxiliary labels; otherwise only those with the primary label.
        control: "": none. "permuted": auxiliary labels shuffled among the samples. "too strong": auxiliary losses x 10.
    """

    labels: int
    plenty: bool
    control: str = ""


@dataclass(frozen=True)
class Settings:
    """What is tuned: learning rate and weight decay of AdamW, number of steps, factor of the auxiliary losses."""

    lr: float
    weight_decay: float
    steps: int
    aux_weight: float = 1.0


Watch = Callable[[float, Any, Batch], None]
"""Called before each weight step with the progress, the model and the batch."""


class RuleWatch:
    """The stop rule of the library, on 96 random held-out samples at a time; by default it is not asked about help."""

    def __init__(self, problem: Problem, held_out: Batch, **options: Any) -> None:
        self.problem, self.held_out, self.options = problem, held_out, {"until": 1.0, **options}
        self.rule: StopRule | None = None

    def __call__(self, progress: float, model: Any, batch: Batch) -> None:
        self.rule = self.rule or self._rule(model)
        self.rule.step(progress, batch)

    def _rule(self, model: Any) -> StopRule:
        def loss_of(name: str, aux: Aux) -> Callable[[Tensor, Batch], Tensor]:
            return lambda outputs, batch: aux.loss(outputs, batch[name])

        return StopRule(
            model,
            draws(self.held_out, 96),
            primary_loss=lambda outputs, batch: self.problem.loss(outputs, batch["primary"]),
            aux_loss={name: loss_of(name, aux) for name, aux in self.problem.auxes.items()},
            inputs=lambda batch: batch["input"],
            **self.options,
        )

    def going_on(self, progress: float) -> Sequence[str]:
        """The auxiliaries that are trained."""
        return self.rule.decide(progress) if self.rule else list(self.problem.auxes)


def draws(samples: Batch, count: int) -> Iterator[Batch]:
    """So many random samples at a time, the same in each run."""
    random = torch.Generator().manual_seed(0)
    while True:
        chosen = torch.randint(len(samples["input"]), (count,), generator=random)
        yield {key: values[chosen] for key, values in samples.items()}


def fit(
    problem: Problem,
    method: Method,
    train: Batch,
    regime: Regime,
    settings: Settings,
    seed: int,
    watch: Watch | None = None,
    held_out: Batch | None = None,
) -> Any:
    """Train by a method, which may need a `RuleWatch` or held-out samples; returns the model, auxiliary and all."""
    torch.manual_seed(seed)
    composition = method.composed(problem)
    problem = composition.problem(problem)
    train, labelled = composition.pool(*choose(problem, train, regime, seed))
    model: Any = method.build(problem, train["input"][:1])
    if train["input"].dim() == 4:
        model.to(memory_format=torch.channels_last)
    factor = settings.aux_weight * method.aux_factor * (TOO_STRONG if regime.control == "too strong" else 1.0)
    training = Training(problem, method, model, factor, watch, held_out)
    for phase in method.phases:
        first = torch.arange(len(train["input"])) if phase.trains == "auxiliaries" else labelled
        in_halves = method.halves and phase.trains == "all"
        group = problem.group if method.by_group else 1
        training.run(phase, settings, batches(problem, train, first, regime, in_halves, seed, group))
    return model


@dataclass(frozen=True)
class Training:
    """A model that is trained by a method, in one phase after the other.

    Args:
        problem, method, model: What `fit` takes, and what the method has built.
        factor: Of the auxiliary losses.
        watch, held_out: See `fit`.
    """

    problem: Problem
    method: Method
    model: Any
    factor: float
    watch: Watch | None
    held_out: Batch | None

    def run(self, phase: Phase, settings: Settings, stream: Iterator[Batch]) -> None:
        """A phase from its first step to its last."""
        method, model, whole = self.method, self.model, phase.trains == "all"
        watch = self.watch if whole or not method.unless_aligned else None  # the rule measures where all is trained
        steps = round(phase.length * settings.steps)
        if phase.rate:
            settings = replace(settings, lr=phase.rate, weight_decay=0.0)
        weights, gates = optimisers(method, model, settings)
        schedules = phase.schedules(weights, gates, steps)
        for step in range(steps):
            progress = step / steps
            auxes = method.taking_part(auxes_at(progress, self.problem, method, watch), step, progress) if whole else []
            method.freeze_(model, progress)
            losses_on = partial(self.losses, phase, auxes, progress)
            batch = method.thinned(next(stream), self.problem.batch, progress)
            if method.halves and whole:
                for_gates, batch = batch, next(stream)
                if auxes:
                    model.zero_grad()
                    method.gate_backward(model, losses_on(for_gates), partial(losses_on, batch))
                    gates.step()
            if watch:
                watch(progress, model, batch)
            model.zero_grad()
            method.backward(model, losses_on(batch))
            weights.step()
            if not method.halves:
                gates.step()
            for schedule in schedules:
                schedule.step()
            if whole:
                method.after_(model, step + 1, steps, self.held_out_loss)

    def losses(self, phase: Phase, auxes: Sequence[str], progress: float, batch: Batch) -> Losses:
        """Losses of a step."""
        if phase.trains == "auxiliaries":
            outputs = self.method.auxes_alone(self.model, batch["input"])
            return {name: self.factor * loss for name, loss in aux_losses(self.problem, outputs, batch).items()}
        rest = progress, self.factor, batch, self.method.composed(self.problem)
        return self.method.losses(self.model, auxes, lambda model, auxes: losses_of(self.problem, model, auxes, *rest))

    def held_out_loss(self, net: nn.Module) -> float:
        """The primary's loss of a network, over at most `HELD_OUT` held-out samples, the same in each run."""
        if self.held_out is None:
            name = type(self.method).__name__
            raise ValueError(f"{name} chooses by held-out samples, and fit got none; give fit(..., held_out=samples)")
        chosen = torch.randperm(len(self.held_out["input"]), generator=torch.Generator().manual_seed(0))[:HELD_OUT]
        return mean_of(self.problem.loss, net, {key: values[chosen] for key, values in self.held_out.items()})


def choose(problem: Problem, train: Batch, regime: Regime, seed: int) -> tuple[Batch, Tensor]:
    """The training samples of a run, and the numbers of those that carry the primary label."""
    random = torch.Generator().manual_seed(seed)
    count = len(train["input"])
    order = torch.randperm(count, generator=random)
    labelled = order[carrying(train["primary"])[order]][: regime.labels or count]
    if not regime.plenty:
        train = {key: values[labelled] for key, values in train.items()}
        labelled = torch.arange(len(labelled))
    if regime.control == "permuted":
        other = torch.randperm(len(train["input"]), generator=random)
        train = {key: values[other] if key in problem.auxes else values for key, values in train.items()}
    return train, labelled


def carrying(labels: Tensor) -> Tensor:
    """Which samples have a label: all but those whose label is NaN, in every place if it has places."""
    return ~labels.isnan().reshape(len(labels), -1).all(1)


def batches(
    problem: Problem, train: Batch, labelled: Tensor, regime: Regime, in_halves: bool, seed: int, group: int = 1
) -> Iterator[Batch]:
    """Samples with the primary label first; then, where auxiliary labels are plenty, as many of all.

    In halves: in turn from either of two halves of the data, drawn anew each pass over the labelled samples.
    """
    random = torch.Generator().manual_seed(seed)
    every, count = torch.arange(len(train["input"])), problem.batch
    parts = [(labelled, every)]
    for step in itertools.count():
        if in_halves and step % (2 * max(1, len(labelled) // (2 * count))) == 0:
            parts = halves(labelled, len(every), random, group)
        few, pool = parts[step % len(parts)]
        pools = [few, pool][: 1 + regime.plenty]
        chosen = torch.cat([pool[torch.randint(len(pool), (count,), generator=random)] for pool in pools])
        yield problem.augment({key: values[chosen] for key, values in train.items()}, random)


def halves(labelled: Tensor, count: int, random: torch.Generator, group: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Two halves of the samples: those that are labelled and all, of each.

    Each has half of the labelled samples; or if samples come in groups, half of the groups, none in both.
    """
    if 1 < group < count:
        groups = torch.randperm(-(-count // group), generator=random)
        return [_within(labelled, count, torch.isin(torch.arange(count) // group, groups[i::2])) for i in (0, 1)]
    few = labelled[torch.randperm(len(labelled), generator=random)]
    others = torch.arange(count)[~torch.isin(torch.arange(count), labelled)]
    others = others[torch.randperm(len(others), generator=random)]
    return [(few[i::2], torch.cat([few[i::2], others[i::2]])) for i in (0, 1)]


def _within(labelled: Tensor, count: int, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The labelled samples and all, of those inside."""
    return labelled[inside[labelled]], torch.arange(count)[inside]


def optimisers(method: Method, model: Any, settings: Settings) -> tuple[Optimizer, Optimizer]:
    """AdamW for the weights, and Adam for the gates, if there are any."""
    gates = model.arch_parameters() if isinstance(model, AuxNASWrapper) else []
    return (
        AdamW(method.weights(model), lr=settings.lr, weight_decay=settings.weight_decay, fused=True),
        Adam([{"params": gates}], lr=GATE_LEARNING_RATE),  # a group may be empty
    )


def auxes_at(progress: float, problem: Problem, method: Method, watch: Any = None) -> Sequence[str]:
    """The auxiliary tasks that are trained; a method that asks for their alignment needs a `RuleWatch`."""
    if method.unless_aligned:
        return watch.going_on(progress)
    return list(problem.auxes) if progress < method.alone_from else []


def losses_of(
    problem: Problem,
    model: Any,
    auxes: Sequence[str],
    progress: float,
    factor: float,
    batch: Batch,
    composition: Composition = AS_THEY_COME,
) -> Losses:
    """Loss of each task, the auxiliary ones times a factor; that of the primary over the samples with its label."""
    few = slice(problem.batch)
    if not auxes:
        output = composition.alone(model.primary_net, batch["input"], problem.batch)
        return {"primary": problem.loss(output, batch["primary"][few])}
    output, outputs = composition.outputs(model, batch["input"], problem.batch)
    losses = {"primary": problem.loss(output[few], batch["primary"][few])}
    losses |= {name: factor * loss for name, loss in aux_losses(problem, outputs, batch).items() if name in auxes}
    if isinstance(model, AuxNASWrapper):
        losses["penalty"] = model.search_penalty(progress)
    return losses


def aux_losses(problem: Problem, outputs: dict[str, Tensor], batch: Batch) -> Losses:
    """Loss of each auxiliary task."""
    return {name: aux.loss(outputs[name], batch[name]) for name, aux in problem.auxes.items()}


@torch.no_grad()
def evaluate(problem: Problem, net: nn.Module, split: Batch) -> float:
    """Mean error of a network on a split."""
    net.eval()
    pairs = zip(split["input"].split(100), split["primary"].split(100))
    return torch.cat([problem.errors(net(inputs), labels) for inputs, labels in pairs]).double().mean().item()


@torch.no_grad()
def mean_of(loss: Loss, net: nn.Module, split: Batch) -> float:
    """Mean loss of a network on a split."""
    net.eval()
    pairs = zip(split["input"].split(100), split["primary"].split(100))
    losses = [len(labels) * loss(net(inputs), labels).double() for inputs, labels in pairs]
    return (torch.stack(losses).sum() / len(split["primary"])).item()
