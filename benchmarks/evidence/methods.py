"""The ways to learn that the studies compare; each gives a network that serves the primary task.

A model, whatever its kind, maps inputs to ``(primary output, {auxiliary: output})`` while it is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from compositions import Composition
from demo import PAPER
from phases import Phase
from problem import Batch, Problem
from study import Side
from torch import Tensor, nn
from torchjd.aggregation import Aggregator, PCGrad, UPGrad
from torchjd.autojac import jac_to_grad, mtl_backward

from auxnas_layers import (
    AuxG,
    AuxNAS,
    AuxNASWrapper,
    CrossStitchFusion,
    CrossTaskFusion,
    DepthLimited,
    FixedArchitecture,
    NDDRFusion,
)
from auxnas_layers.search import Search, SearchSpace

Losses = dict[str, Tensor]
"""Loss of each task in a step, the primary one first."""


@dataclass(frozen=True)
class Method:
    """The primary network by itself, and what other methods change of that.

    Args:
        halves: Whether a step is a gate step on one half of the data and a weight step on the other.
        by_group: Whether no group of samples is in both halves.
        alone_from: Progress from which on the primary network is trained by itself; 0: there is no other.
        unless_aligned: Whether auxiliaries go on even then if their alignment says that they help; one that has not
            been learned at all is left out earlier.
        aux_factor: Of the auxiliary losses, on top of their weight in the settings.
        composition: What the batches are made of; by default what the problem says.
        phases: The trainings that it consists of; progress is that of the phase.
    """

    halves: bool = False
    by_group: bool = False
    alone_from: float = 1.0
    unless_aligned: bool = False
    aux_factor: float = 1.0
    composition: Composition | None = None
    phases: tuple[Phase, ...] = (Phase(),)

    def composed(self, problem: Problem) -> Composition:
        """What its batches are made of on a problem."""
        return self.composition or Composition(apart=problem.apart)

    @property
    def stretch(self) -> float:
        """How many times the steps of the settings it takes."""
        return sum(phase.length for phase in self.phases)

    def build(self, problem: Problem, example: Tensor) -> nn.Module:
        """The model to train."""
        return Alone(problem.net())

    def weights(self, model: Any) -> list[dict[str, Any]]:
        """Groups of parameters of the weight optimiser."""
        joined = isinstance(model, AuxNASWrapper)
        return [{"params": list(model.weight_parameters() if joined else model.parameters())}]

    def taking_part(self, auxes: Sequence[str], step: int, progress: float) -> Sequence[str]:
        """The auxiliaries that a step trains, of those that go on."""
        return auxes

    def thinned(self, batch: Batch, labelled: int, progress: float) -> Batch:
        """The samples of a batch that a step takes; so many, the first ones, carry the primary label."""
        return batch

    def freeze_(self, model: nn.Module, progress: float) -> None:
        """Freeze what is no longer trained."""

    def losses(self, model: Any, auxes: Sequence[str], find: Callable[[Any, Sequence[str]], Losses]) -> Losses:
        """Losses of a step; `find` gives those of a model for the primary and some auxiliary tasks."""
        return find(model, auxes)

    def auxes_alone(self, model: Any, inputs: Tensor) -> dict[str, Tensor]:
        """Outputs of the auxiliaries in a phase that trains them alone."""
        return model(inputs)[1]

    def backward(self, model: nn.Module, losses: Losses) -> None:
        """Gradients of a weight step."""
        torch.stack(list(losses.values())).sum().backward()

    def gate_backward(self, model: nn.Module, losses: Losses, ahead: Callable[[], Losses]) -> None:
        """Gradients of a gate step of its own; `ahead` gives the losses of the weight step that comes next."""
        self.backward(model, losses)

    def after_(self, model: Any, done: int, steps: int, held_out_loss: Callable[[nn.Module], float]) -> None:
        """What follows a step, after which so many are done; `held_out_loss` is the primary's, of a network."""

    def export(self, model: Any) -> nn.Module:
        """The network to serve."""
        return model.primary_net


class Alone(nn.Module):
    """A network by itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.primary_net = net

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.primary_net(inputs), {}


class Heads(Alone):
    """The primary network, with a head for each auxiliary task on its backbone."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.net())
        self.auxes = nn.ModuleDict({name: aux.net() for name, aux in problem.auxes.items()})  # their heads are used
        self.shared = torch.zeros(0)

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.shared = self.primary_net.features(inputs)
        outputs = {name: aux.predict(self.shared) for name, aux in self.auxes.items()}
        return self.primary_net.predict(self.shared), outputs


@dataclass(frozen=True)
class SharedBackbone(Method):
    """Heads for all tasks on one backbone."""

    def build(self, problem: Problem, example: Tensor) -> nn.Module:
        """A head for each task."""
        return Heads(problem)


@dataclass(frozen=True)
class Surgery(SharedBackbone):
    """A shared backbone whose gradients are joined by an aggregator: PCGrad, UPGrad, gradient cosine similarity."""

    aggregator: Callable[[], Aggregator] = UPGrad

    def backward(self, model: Any, losses: Losses) -> None:
        """The heads' gradients as they are, the backbone's joined."""
        if len(losses) == 1:
            return super().backward(model, losses)
        mtl_backward(list(losses.values()), model.shared, parallel_chunk_size=1)
        shared = [p for p in model.primary_net.parameters() if getattr(p, "jac", None) is not None]
        jac_to_grad(shared, self.aggregator())
        for parameter in shared:  # a fused optimiser goes by the parameter's layout, whatever that of the gradient
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)


class CosineSimilarity(Aggregator):
    """The first gradient, and those of the others that do not point against it (Du et al., arXiv 1812.02224)."""

    def forward(self, matrix: Tensor) -> Tensor:
        helps = (matrix @ matrix[0] >= 0).to(matrix.dtype)
        return helps @ matrix


@dataclass(frozen=True)
class Uncertainty(SharedBackbone):
    """A shared backbone whose losses have learned weights (Kendall et al., CVPR 2018): ``exp(-s) L + s``."""

    lr: float = 1e-2  # of s, which would hardly move at that of the weights

    def build(self, problem: Problem, example: Tensor) -> nn.Module:
        """A head and a log-variance for each task."""
        model = super().build(problem, example)
        model.log_variances = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(())) for task in ("primary", *problem.auxes)}
        )
        return model

    def weights(self, model: Any) -> list[dict[str, Any]]:
        """The log-variances in a group of their own, without decay."""
        variances = list(model.log_variances.parameters())
        others = [p for p in model.parameters() if all(p is not s for s in variances)]
        return [{"params": others}, {"params": variances, "lr": self.lr, "weight_decay": 0.0}]

    def backward(self, model: Any, losses: Losses) -> None:
        """Gradients of the weighted losses."""
        s = model.log_variances
        torch.stack([torch.exp(-s[task]) * loss + s[task] for task, loss in losses.items()]).sum().backward()


@dataclass(frozen=True)
class Joined(Method):
    """Two networks, or one and a listening head, joined by the wrapper.

    Args:
        search: See `AuxNASWrapper`.
        reach: See `DepthLimited`.
        fusion: See `AuxNASWrapper`.
        head: Whether the auxiliary network is only a head that listens to the primary.
        taps: Numbers of the problem's taps that are used; all by default.
        served: "primary": the exported primary, with edges into it that are still open cut. "both": both networks.
    """

    search: Search = AuxNAS()
    reach: int = 3
    fusion: Callable[..., Any] = CrossTaskFusion
    head: bool = False
    taps: tuple[int, ...] = ()
    served: str = "primary"

    def build(self, problem: Problem, example: Tensor) -> nn.Module:
        """The wrapper."""
        primary = problem.net()  # first, so that it starts alike under every method
        if self.head:
            parts = {name: aux.head for name, aux in problem.auxes.items()}
            nets, taps = {n: make() for n, (make, _) in parts.items()}, {n: hears for n, (_, hears) in parts.items()}
        else:
            nets = {name: aux.net() for name, aux in problem.auxes.items()}
            taps = {name: [aux.taps[i] for i in self.taps] or aux.taps for name, aux in problem.auxes.items()}
        return AuxNASWrapper(
            primary,
            nets,
            taps,
            search=self.search,
            search_space=self.search_space(),
            fusion=self.fusion,
            example_inputs=example,
        )

    def search_space(self) -> SearchSpace:
        """From which taps a tap may receive."""
        return DepthLimited(self.reach)

    def auxes_alone(self, model: Any, inputs: Tensor) -> dict[str, Tensor]:
        """Without edges."""
        return {name: net(inputs) for name, net in model.aux_net.items()}

    def export(self, model: AuxNASWrapper) -> nn.Module:
        """The primary, or for methods that need both networks at inference, these."""
        if self.served == "primary":
            return model.eval().export_primary(allow_open=True)
        return Side(model.eval().export_multitask(), 0)


@dataclass(frozen=True)
class LookAhead(Joined):
    """Gates towards the auxiliary that are learned for the primary's loss on other samples one step ahead.

    That loss, after a step of the auxiliary loss, has the gradient ``-lr d/dgate <g, dL_aux/dw>`` in a gate, with g its
    gradient in the primary's weights w: taken, up to the factor lr, by differences of the gates' gradients at w plus
    and minus a piece of g, `small` long, as in second-order DARTS (Liu et al., arXiv 1806.09055). What these gates do
    to the loss before the step, through edges into the primary that are still open, is left out.
    """

    halves: bool = True
    small: float = 1e-2

    def gate_backward(self, model: Any, losses: Losses, ahead: Callable[[], Losses]) -> None:
        """Gradients of the primary's loss in the gates into it, and ahead in those towards the auxiliary."""
        weights = list(model.primary_net.parameters())
        gates = [gate.alpha for name, gate in model.gates.items() if not name.endswith("to_primary")]
        (losses["primary"] + losses["penalty"]).backward()  # for gates towards the primary, this is all
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]
        scale = (self.small / torch.stack([g.norm() for g in gradients]).norm().clamp(min=1e-12)).item()
        slopes = []
        for shift in (scale, -2 * scale):  # from w up to w + small g, and down to w - small g
            _move_(weights, gradients, shift)
            options = {"allow_unused": True, "materialize_grads": True}  # gates that have all closed are not used
            slopes.append(torch.autograd.grad(aux_loss(ahead()), gates, **options))
        _move_(weights, gradients, scale)
        for alpha, above, below in zip(gates, *slopes):
            alpha.grad = (below - above) / (2 * scale)


@torch.no_grad()
def _move_(weights: list[nn.Parameter], gradients: list[Tensor], scale: float) -> None:
    for weight, gradient in zip(weights, gradients):
        weight.add_(gradient, alpha=scale)


def aux_loss(losses: Losses) -> Tensor:
    """Sum of the auxiliary losses."""
    return torch.stack([loss for task, loss in losses.items() if task not in ("primary", "penalty")]).sum()


STOP_RULE: dict[str, Any] = {"alone_from": 0.5, "unless_aligned": True}
NEVER_STOPPED: dict[str, Any] = {"alone_from": 1.0, "unless_aligned": False}
BOTH = Joined(search=FixedArchitecture(), reach=1, served="both")
SINGLE, MATCHED, SHARED = "single-task", "single-task, same compute", "shared backbone"
PRETRAINED = "pretrained by the auxiliary"
SHARED_STOPPED, AUX_G, OURS, LIGHT = "shared backbone, our stop rule", "Aux-G", "ours", "ours, light auxiliary"
METHODS: dict[str, Method] = {
    SINGLE: Method(alone_from=0.0),
    MATCHED: Method(alone_from=0.0, phases=(Phase(length=4),)),
    PRETRAINED: SharedBackbone(phases=(Phase("auxiliaries"), Phase("primary"))),
    SHARED: SharedBackbone(),
    SHARED_STOPPED: SharedBackbone(**STOP_RULE),
    "shared, PCGrad": Surgery(aggregator=PCGrad),
    "shared, UPGrad": Surgery(aggregator=UPGrad),
    "shared, gradient cosine": Surgery(aggregator=CosineSimilarity),
    "shared, uncertainty": Uncertainty(),
    AUX_G: Joined(search=AuxG(own_share=1.0, start="zero")),
    "Aux-G, our start": Joined(search=AuxG()),
    "Aux-NAS, paper": Joined(search=PAPER, halves=True),
    "cross-stitch": replace(BOTH, fusion=CrossStitchFusion),
    "NDDR-CNN": replace(BOTH, fusion=NDDRFusion),
    OURS: Joined(**STOP_RULE),
    LIGHT: Joined(search=AuxG(), head=True, **STOP_RULE),
}
