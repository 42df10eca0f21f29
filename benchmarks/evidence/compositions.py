"""What a training step's batches are made of, and what batch norm makes of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from norms import FrozenNorm, LabelledNorm, group_norm, with_norms
from problem import Aux, Batch, Problem
from torch import Tensor, nn


@dataclass(frozen=True)
class Composition:
    """How the samples of a step go through the networks.

    Args:
        apart: Whether samples with the primary label and the others go through in a forward of their own each.
        others: What goes through a network that is trained alone beside the samples of its loss: nothing; the others,
            of which no label is used; or as many more that carry the primary label, of which none is used either.
        norm: Batch norm "train"s on all samples of a forward, or on those with the primary label alone ("labelled");
            is "frozen" with its pretrained statistics; or is a group norm ("group"), which knows no batch.
        times: How many times the samples that the problem has in a step.
    """

    apart: bool = False
    others: Literal["", "unlabelled", "labelled"] = ""
    norm: Literal["train", "labelled", "frozen", "group"] = "train"
    times: int = 1

    def problem(self, problem: Problem) -> Problem:
        """With other norms in its networks, and other batches."""
        count = self.times * problem.batch
        norms: dict[str, Callable[[nn.Module], nn.Module]] = {"frozen": FrozenNorm, "group": group_norm}
        if not self.apart:
            norms["labelled"] = partial(LabelledNorm, count=count)
        if self.norm not in norms:
            return replace(problem, batch=count)

        def changed(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
            return lambda: with_norms(make(), norms[self.norm])

        def changed_aux(aux: Aux) -> Aux:
            return replace(aux, net=changed(aux.net))

        auxes = {name: changed_aux(aux) for name, aux in problem.auxes.items()}
        return replace(problem, batch=count, net=changed(problem.net), auxes=auxes)

    def pool(self, train: Batch, labelled: Tensor) -> tuple[Batch, Tensor]:
        """What the others are drawn from, and the numbers of those there that carry the primary label."""
        if self.others != "labelled":
            return train, labelled
        return {key: values[labelled] for key, values in train.items()}, torch.arange(len(labelled))

    def alone(self, net: nn.Module, inputs: Tensor, count: int) -> Tensor:
        """Outputs of the first samples of a network that is trained alone."""
        if not self.others:
            return net(inputs[:count])
        if not self.apart:
            return net(inputs)[:count]
        outputs = net(inputs[:count])
        with torch.no_grad():
            net(inputs[count:])  # for its statistics
        return outputs

    def outputs(self, model: Any, inputs: Tensor, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Primary and auxiliary outputs of all samples, of which so many come first."""
        if not self.apart or len(inputs) == count:
            return model(inputs)
        primary, auxes = model(inputs[:count])
        with keeping_statistics(model) if self.norm == "labelled" else nullcontext():
            others, other_auxes = model(inputs[count:])
        return torch.cat([primary, others]), {name: torch.cat([auxes[name], other_auxes[name]]) for name in auxes}


@contextmanager
def keeping_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm normalises as in training, and its running statistics stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
