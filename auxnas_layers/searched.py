"""Joined networks under gates that a search moves: its penalty, its architecture, and what leaves it."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from auxnas_layers._engine.joint import JoinedNets
from auxnas_layers._torch.compiled import uncompiled
from auxnas_layers._torch.graphs import is_capturing
from auxnas_layers._torch.state import is_transforming
from auxnas_layers.errors import SearchError
from auxnas_layers.export.report import check_closed
from auxnas_layers.features.taps import PRIMARY
from auxnas_layers.features.undisturbed import is_own_call
from auxnas_layers.search.edges import Architecture, check_architecture
from auxnas_layers.search.gate_bank import OpenGates
from auxnas_layers.search.penalties import check_progress
from auxnas_layers.search.searches import AuxNAS, Search
from auxnas_layers.search.watch import SearchWatch


class SearchedNets(JoinedNets):
    """Joined networks with a search, one for all auxiliaries or one for each by name; a base class of the wrapper."""

    search: Search | Mapping[str, Search]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch = SearchWatch()

    def search_penalty(self, progress: float) -> Tensor:
        """Advance the search to `progress`, and return the penalty to add to the loss.

        Call it in every step: under `AuxNAS` it lowers the gates into the primary to the ceiling of the schedule, which
        closes them; under `MTLNAS` it lowers the temperature. It keeps no counter: the same progress always gives the
        same ceiling and temperature.

        Args:
            progress: Share of training that is done, in [0, 1], such as ``step / total_steps``.

        Returns:
            Scalar tensor, in units of the loss; with several auxiliaries the sum over all.

        Raises:
            SearchError: If progress is not in [0, 1], or a CUDA graph is being captured.
        """
        penalty: Tensor = uncompiled(SearchedNets._advance)(self, progress)
        return penalty

    @override
    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._watch.loaded()

    def _advance(self, progress: float) -> Tensor:
        progress = check_progress(progress)
        if is_capturing():
            raise SearchError(
                f"a CUDA graph would repeat search_penalty({progress:.4g}) in every step, whatever the progress is by "
                "then; call it outside the capture, and capture the forward pass"
            )
        self._watch.advanced(progress)
        return self.gates.advance_(progress, self._searches())

    def _searches(self) -> Mapping[str, Search]:
        """The search of each auxiliary."""
        return self.search if isinstance(self.search, Mapping) else dict.fromkeys(self._taps, self.search)

    @override
    def _note_forward(self, gates: OpenGates) -> None:
        if is_own_call():
            return
        inward = [edge for edge in gates if edge.direction.inward]
        if not self.training:
            searches = self._searches()
            self._watch.evaluated([edge for edge in inward if isinstance(searches[edge.direction.aux], AuxNAS)])
            return
        if not torch.is_grad_enabled() or is_transforming() or is_capturing():
            return
        self._watch.stepped(lambda: {"the auxiliaries": self.aux_parameters(), "the edges": self.fusion_parameters()})
        if any(self.gates.is_searching(edge.direction) for edge in inward):
            self._watch.trained()

    def discretize_(self) -> None:
        """Decide for good: edges with a gate above 1/2 are kept, under gate 1, and all others closed.

        Gates that are not searched, `FixedGate`, do not change.

        Raises:
            SearchError: If a gate is NaN.
        """
        self.gates.discretize_()

    def close_aux_to_primary_(self) -> None:
        """Close every edge into the primary now and for good."""
        self.gates.close_inward_()

    def architecture(self, aux: str | None = None) -> Architecture:
        """All edges with their current gates; prints as a table.

        Args:
            aux: Only the edges of the auxiliary of this name; by default those of all.

        Raises:
            SearchError: If a gate is NaN, or there is no auxiliary of this name.
        """
        if aux is not None and aux not in self._taps:
            raise SearchError(f"no auxiliary is called {aux!r}; there are {', '.join(map(repr, self._taps))}")
        return self.gates.architecture(aux)

    def load_architecture(self, architecture: Architecture) -> None:
        """Set every gate as in an architecture found earlier, for these or other networks; taps match by number.

        Args:
            architecture: What `architecture()` returned; an edge that is not open is closed, whatever its gate.

        Raises:
            SearchError: If the two do not have the same edges; says which differ, and changes nothing.
        """
        check_architecture(architecture)
        self.gates.load_(architecture)

    def remove_aux_(self, aux: str, allow_open: bool = False) -> nn.Module:
        """Remove one of several auxiliaries with its taps, gates and edges. Existing optimisers keep working.

        Args:
            aux: Name of the auxiliary.
            allow_open: Cut its edges into the primary that are still open, and fusions of the primary that only it
                used, which changes the primary's outputs.

        Returns:
            The auxiliary network.

        Raises:
            SearchError: If there is no auxiliary of this name, or it is the only one.
            ExportError: If it has open edges into the primary, or a fusion there that acts without open edges.
        """
        if not self._named or list(self._taps) == [aux]:
            raise SearchError("the only auxiliary cannot be removed; wrapper.export_primary() leaves it behind")
        taps = {name: side for name, side in self._taps.items() if name != aux}
        left = {tap.primary for side in taps.values() for tap in side}
        acting = self.fusions.acting(layer for layer in self._tapped()[PRIMARY] if layer.name not in left)
        later = "Train on until search_penalty has closed them"
        check_closed(self.architecture(aux), acting, allow_open=allow_open, otherwise=later)
        self._keep_(taps, lambda edge: edge.direction.aux != aux)
        self.gates.remove_(aux)
        self._set_costs_()
        if isinstance(self.search, Mapping):
            self.search = {name: search for name, search in self.search.items() if name != aux}
        return cast(nn.ModuleDict, self.aux_net).pop(aux)

    @override
    def _facts(self) -> list[str]:
        gates = [f"{direction}: {gate.extra_repr()}" for direction, gate in self.gates.by_direction().items()]
        return [f"search={self.search}", *gates]
