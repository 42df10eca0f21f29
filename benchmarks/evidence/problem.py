"""What a study asks of a data set: inputs, a primary task, auxiliary tasks on the same inputs, networks for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor, nn

Batch = dict[str, Tensor]
"""Tensors of equally many samples, samples first: ``"input"``, ``"primary"``, and the labels of each auxiliary task.

Training samples may lack the primary label, which is then NaN; they train the auxiliary tasks.
"""

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs and labels of a batch to a scalar."""

Errors = Callable[[Tensor, Tensor], Tensor]
"""From outputs and labels of a batch to one number for each sample."""


@dataclass(frozen=True)
class Aux:
    """An auxiliary task.

    Args:
        net: Makes its network, as for the primary task but for the outputs.
        loss: Of its outputs, mean over a batch.
        taps: Layers to join, as `AuxNASWrapper` takes them.
        head: Makes a network that is only a head on listeners, and says which primary layers these hear, as
            (primary layer, listener) pairs; for the light auxiliary.
    """

    net: Callable[[], nn.Module]
    loss: Loss
    taps: Sequence[str | tuple[str, str]]
    head: tuple[Callable[[], nn.Module], Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Problem:
    """A data set with a primary and auxiliary tasks.

    Args:
        name: As tables print it, "primary <- auxiliary".
        metric: What `errors` are, with their unit; lower is better.
        load: Splits ``"train"``, ``"validation"``, ``"test"``, made once and kept in ``data/``; no level, document or
            other source of samples is in two of them. ``load(True)``: a few dozen samples, in
            seconds, to try code.
        net: Makes the network of the primary task; ``net(inputs)`` is ``net.predict(net.features(inputs))``, and
            `predict` may be put on the features of another task's network.
        loss: Of its outputs, mean over a batch.
        errors: Of its outputs, one number for each sample.
        auxes: Auxiliary tasks by name; their labels are in the batches under the same name.
        batch: Samples in a training step that carry the primary label.
        augment: Changes a training batch by random numbers of a generator.
        costly: Whether its networks are so large, or so many, that it gets fewer trials and methods.
        apart: Whether samples with the primary label and the others go through the networks in a forward of their own
            each, unless a method composes its batches in another way.
        group: Training samples come in groups of so many that have something in common, such as a level.
    """

    name: str
    metric: str
    load: Callable[[bool], dict[str, Batch]]
    net: Callable[[], nn.Module]
    loss: Loss
    errors: Errors
    auxes: Mapping[str, Aux]
    batch: int = 8
    augment: Callable[[Batch, Generator], Batch] = lambda batch, random: batch
    costly: bool = False
    apart: bool = False
    group: int = 1
