"""The features of one forward pass: which layer receives which, in which layout, under which gate."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from auxnas_layers._torch.state import version
from auxnas_layers.errors import LayoutError, TapError, bullets
from auxnas_layers.features.align import align
from auxnas_layers.features.dry_run import LayerInfo
from auxnas_layers.features.layouts import Layout
from auxnas_layers.features.taps import PRIMARY, Layer
from auxnas_layers.fusion.base import Fusion, OpenEdges
from auxnas_layers.search.edges import Edge
from auxnas_layers.search.gate_bank import OpenGates


class FeatureExchange:
    """The features of one forward pass, on their way from sources to the fusions of the layers that receive.

    Args:
        edges: The edges into each layer.
        layers: Layout of each layer's feature, and whether the network overwrites it.
        fusions: The fusion of each layer that receives.
        gates: The gate of each open edge.
    """

    def __init__(
        self,
        edges: Mapping[Layer, Sequence[Edge]],
        layers: Mapping[Layer, LayerInfo],
        fusions: Mapping[Layer, Fusion],
        gates: OpenGates,
    ) -> None:
        self.layers, self.fusions = layers, fusions
        self.open: dict[Layer, dict[int, tuple[Layer, Tensor]]] = {
            target: {j: (edge.source_layer, gates[edge]) for j, edge in enumerate(side) if edge in gates}
            for target, side in edges.items()
        }
        self.sources = {source for side in self.open.values() for source, _ in side.values()}
        self.kept: dict[Layer, tuple[Tensor, int]] = {}
        self.fused: dict[Layer, tuple[Tensor, int]] = {}
        self.aligned: dict[tuple[Layer, Layout, torch.Size, torch.device, torch.dtype], Tensor] = {}

    @property
    def primary_receives(self) -> bool:
        """Whether an edge into the primary is open, so that the networks must take turns."""
        return any(side for layer, side in self.open.items() if layer.role == PRIMARY)

    def keep(self, layer: Layer, feature: Tensor) -> None:
        """Keep a feature, as it is before fusion, if an open edge will carry it."""
        if layer in self.sources:
            kept = feature.clone() if self.layers[layer].overwritten else feature
            self.kept[layer] = kept, version(kept)

    def fuse(self, layer: Layer, feature: Tensor) -> Tensor:
        """The feature that a layer returns: its own, and what its open edges bring."""
        if layer not in self.open:
            return feature
        edges = {
            j: (self._bring(source, layer, feature), gate.to(feature.device))
            for j, (source, gate) in self.open[layer].items()
        }
        fusion, overwritten = self.fusions[layer], self.layers[layer].overwritten
        if not edges and fusion.residual:
            return feature
        self._check_widths(layer, feature, edges)
        fused: Tensor = fusion(feature, edges)
        # The next layer overwrites it; the last function of the fusion may need it for its gradient, as a ReLU does.
        if edges and not overwritten:
            self.fused[layer] = fused, version(fused)
        return fused.clone() if overwritten and not fusion.residual else fused

    def _check_widths(self, layer: Layer, feature: Tensor, edges: OpenEdges) -> None:
        """Refuse features with other channels than those for which the fusion has weights."""
        fusion = self.fusions[layer]
        dim, (own, *others) = fusion.channel_dim, fusion.sizes
        now = [feature.shape[dim], *(source.shape[dim] for source, _ in edges.values())]
        was = [own, *(others[j] for j in edges)]
        if now != was:
            names = [str(layer), *(f"{self.open[layer][j][0]} -> {layer}" for j in edges)]
            wrong = [f"{name}: {a} channels, {b}" for name, a, b in zip(names, now, was, strict=True) if a != b]
            rule = "features have other channels than when the edges were sized (now, then); wrap the networks anew:"
            raise LayoutError(bullets(rule, wrong))

    def overwritten(self) -> list[Layer]:
        """Layers modified in place that the dry run missed; the features of these layers are copied from now on."""
        return [layer for layer, (fused, before) in self.fused.items() if version(fused) != before]

    def _bring(self, source: Layer, target: Layer, feature: Tensor) -> Tensor:
        """The feature of a source as its target needs it; once for all targets of one layout, shape and dtype."""
        layout, wanted = self.layers[source].layout, self.layers[target].layout
        assert layout and wanted  # checked when the edges were sized
        kept, before = self.kept[source]
        if version(kept) != before:
            raise TapError(
                f"{source.role} tap {source.name!r}: the network overwrote the feature in place after the tap, which "
                "it did not do in the dry run in eval mode; make that operation out-of-place, or tap the layer after it"
            )
        dtype = self.fusions[target].source_dtype(kept)
        key = source, wanted, feature.shape, feature.device, dtype
        if key not in self.aligned:
            try:
                self.aligned[key] = align(kept.to(feature.device), layout, feature.shape, wanted).to(dtype)
            except LayoutError as error:
                raise LayoutError(f"{source} -> {target}: {error}") from None
        return self.aligned[key]
