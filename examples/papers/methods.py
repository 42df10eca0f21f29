"""The ways to train a primary network, alone or with an auxiliary one; all give a single-task network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backbones import Backbone, LightAux, Net, resized
from released import PAPER
from tasks import Task
from torch import Tensor, nn

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, DepthLimited, NDDRFusion
from auxnas_layers.fusion import Fusion
from auxnas_layers.search import Search, SearchSpace

REACH = 3  # [M]
Outputs = tuple[Tensor, Tensor | None]


class Alone(nn.Module):
    """The primary network."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.primary_net = net

    def forward(self, images: Tensor) -> Outputs:
        return self.primary_net(images), None

    def search_penalty(self, progress: float) -> Tensor | float:
        """Nothing is searched."""
        return 0.0


class Shared(Alone):
    """Two heads on one backbone."""

    def __init__(self, net: Net, head: nn.Module) -> None:
        super().__init__(net)
        self.aux_head = head

    def forward(self, images: Tensor) -> Outputs:
        features = self.primary_net.features(images)
        return resized(self.primary_net.predict(features), images), resized(self.aux_head(features), images)


@dataclass(frozen=True)
class Method:
    """How two networks are joined.

    Args:
        search: See `AuxNASWrapper`.
        staged: Whether edges stay within the stages of a backbone, as in [M]; otherwise they reach over three taps.
        fusion: See `AuxNASWrapper`; None for the default.
        light: Whether the auxiliary is only a head.
        halves: Whether gates are trained on one half of the images and weights on the other [M] [A].
        gate_lr: Of Adam for the gates.
        gate_options: Of the same.
        warm: Whether both networks start from trained single-task ones.
        both: Whether both networks are kept and judged.
    """

    search: Search
    staged: bool = False
    fusion: Callable[..., Fusion] | None = None
    light: bool = False
    halves: bool = False
    gate_lr: float = 1e-2  # [A]
    gate_options: tuple[tuple[str, Any], ...] = ()
    warm: bool = False
    both: bool = False

    def build(self, backbone: Backbone, nets: list[nn.Module], task: Task, example: Tensor) -> AuxNASWrapper:
        """The joined networks."""
        taps: Any = LightAux.taps(backbone, task) if self.light else list(backbone.taps)
        space: SearchSpace | Any = DepthLimited(REACH)
        if self.staged:
            space = within(backbone.stages)
        elif self.light:
            space = DepthLimited(1)
        options = {"fusion": self.fusion} if self.fusion else {}
        return AuxNASWrapper(*nets, taps, search=self.search, search_space=space, example_inputs=example, **options)


def within(stages: tuple[int, ...]) -> list[list[bool]]:
    """A tap receives from the three taps up to it, but not from another stage; row receives from column [M]."""
    stage = [number for number, count in enumerate(stages) for _ in range(count)]
    taps = range(len(stage))
    return [[stage[s] == stage[t] and 0 <= t - s < REACH for s in taps] for t in taps]


SINGLE, SHARED = "single-task", "shared"
METHODS: dict[str, Method] = {
    "aux-g": Method(AuxG(own_share=1.0, start="zero"), staged=True, warm=True),
    "aux-nas": Method(PAPER, staged=True, halves=True, warm=True),
    "ours": Method(AuxNAS()),
    "light": Method(AuxG(), light=True),
    "mtl-nas": Method(
        MTLNAS(entropy=10.0, entropy_ramp=(0.0, 0.0), own_share=1.0, start="zero"),  # [M]
        staged=True,
        fusion=NDDRFusion,
        halves=True,
        gate_lr=1e-3,  # [M]
        gate_options=(("betas", (0.5, 0.999)), ("weight_decay", 1e-3)),  # [M]
        warm=True,
        both=True,
    ),
}
