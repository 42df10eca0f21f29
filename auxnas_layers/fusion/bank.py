"""The fusions of all layers that receive features."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import cast

from torch import Tensor, nn
from typing_extensions import Self

from auxnas_layers.errors import LayoutError, bullets
from auxnas_layers.features.dry_run import LayerInfo
from auxnas_layers.features.inputs import floating_parameter
from auxnas_layers.features.taps import Layer
from auxnas_layers.features.undisturbed import undisturbed
from auxnas_layers.fusion.base import Fusion


class FusionBank(nn.ModuleDict):
    """The fusion of each layer that receives, under its role and its number among the tapped layers of its network.

    Numbers and not names, since names may contain dots, which no module's own name may.

    Args:
        layers: The tapped layers of each network, by role, in order.
        sources: The layers from which each layer receives; those without sources have no fusion.
        make: Makes the fusion of a layer.
        nets: The networks by role: a fusion gets the dtype and device of its layer.
    """

    def __init__(
        self,
        layers: Mapping[str, Sequence[Layer]],
        sources: Mapping[Layer, Sequence[Layer]],
        make: Callable[[Layer], Fusion],
        nets: Mapping[str, nn.Module],
    ) -> None:
        super().__init__({role: nn.ModuleDict() for role in layers})
        self._numbers = {layer: str(i) for side in layers.values() for i, layer in enumerate(side) if layer in sources}
        self._sources = {layer: tuple(sources[layer]) for layer in self._numbers}
        for layer, number in self._numbers.items():
            like = _parameter(nets, layer)
            with nullcontext() if like is None else like.device:  # a state may be loaded before the first forward
                fusion = make(layer)
            if fusion.is_lazy() and like is not None:
                fusion.to(like.dtype)
            cast(nn.ModuleDict, self[layer.role])[number] = fusion

    def by_layer(self) -> dict[Layer, Fusion]:
        """The fusion of each layer that receives."""
        return {
            layer: cast(Fusion, cast(nn.ModuleDict, self[layer.role])[number])
            for layer, number in self._numbers.items()
        }

    def size_(self, found: Mapping[Layer, LayerInfo], nets: Mapping[str, nn.Module]) -> None:
        """Size every fusion for the features that it joins, in the dtype and on the device of the layer that receives.

        Args:
            found: What a dry run found out about each layer.
            nets: The networks by role.

        Raises:
            LayoutError: With all fusions that cannot join their features.
        """
        problems = []
        with undisturbed():  # how edges start does not change the random numbers that the user's networks draw
            for layer, fusion in self.by_layer().items():
                own, like = found[layer], _parameter(nets, layer)
                assert own.layout
                try:
                    fusion.materialise(
                        own.channels,
                        [found[source].channels for source in self._sources[layer]],
                        channel_dim=own.layout.channel_dim,
                        device=own.device,
                        dtype=own.dtype if like is None else like.dtype,
                    )
                except LayoutError as error:
                    problems.append(f"{layer}: {error}")
        if problems:
            raise LayoutError(bullets("these features cannot be fused:", problems))

    def operations(self, found: Mapping[Layer, LayerInfo]) -> dict[Layer, list[float]]:
        """Multiplications of each edge in one forward, by the layer that receives."""
        return {
            layer: [float(fusion.operations(j) * found[layer].positions) for j in range(len(self._sources[layer]))]
            for layer, fusion in self.by_layer().items()
        }

    def acting(self, layers: Iterable[Layer]) -> list[str]:
        """Those of these layers' fusions that change a feature even when no edge is open, as messages name them."""
        fusions = self.by_layer()
        found = [(layer.name, fusions[layer]) for layer in layers if layer in fusions]
        return [f"{type(fusion).__name__} at {name!r}" for name, fusion in found if not fusion.residual]

    def kept(
        self,
        layers: Mapping[str, Sequence[Layer]],
        numbers: Mapping[Layer, Sequence[int]],
        sources: Mapping[Layer, Sequence[Layer]],
        nets: Mapping[str, nn.Module],
    ) -> Self:
        """A bank with some of the edges of this one, whose fusions it takes over.

        Args:
            layers: The tapped layers that are left, by role.
            numbers: The edges to keep of each layer, by their numbers; a fusion that does nothing without edges is
                dropped when it keeps none.
            sources: The layers from which each layer still receives.
            nets: The networks by role.
        """
        fusions = self.by_layer()
        tapped: Collection[Layer] = {layer for side in layers.values() for layer in side}
        left = [layer for layer in fusions if layer in tapped and (numbers[layer] or not fusions[layer].residual)]
        for layer in left:
            fusions[layer].keep_(numbers[layer])
        kept = {layer: sources.get(layer, ()) for layer in left}
        bank = type(self)(layers, kept, lambda layer: fusions[layer], nets)
        bank.take_mode_(self)
        return bank

    def take_mode_(self, other: "FusionBank") -> None:
        """Be in train mode or not as another bank is; its fusions keep modes of their own."""
        for mine, its in ((self, other), *((self[role], other[role]) for role in self)):
            mine.training = its.training


def _parameter(nets: Mapping[str, nn.Module], layer: Layer) -> Tensor | None:
    """The parameter that gives a layer's dtype and device: its own, or else its network's."""
    net = nets[layer.role]
    return floating_parameter(net.get_submodule(layer.name), net)
