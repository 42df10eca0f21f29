"""Taps and edges in the state of joined networks, so that a state is not loaded where it does not belong."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from auxnas_layers.errors import TapError, bullets
from auxnas_layers.features.taps import Layer, Tap
from auxnas_layers.search.edges import Edge

_KEY = "_extra_state"  # torch's own key for what `get_extra_state` returns
_WRAPPED = "(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)"
_ADDED = re.compile(rf"{_WRAPPED}\.|\.{_WRAPPED}(?=')")  # to names, by wrappers of layers


class TapsInState(nn.Module):
    """Joined networks whose state names their taps and edges; a base class."""

    _taps: Mapping[str, Sequence[Tap]]
    _edges: Mapping[Layer, Sequence[Edge]]

    def _names(self) -> list[str]:
        """All taps and edges, as messages name them."""
        taps = [f"tap {aux} {tap.primary!r}, {tap.aux!r}" for aux, side in self._taps.items() for tap in side]
        edges = [f"edge {edge.label}" for layer in sorted(self._edges) for edge in self._edges[layer]]
        return [_ADDED.sub("", name) for name in (*taps, *edges)]

    @override
    def get_extra_state(self) -> Tensor:
        """The names as JSON; a tensor, since that is all that safetensors take, into which sums of states fit."""
        return torch.tensor(list(json.dumps(self._names()).encode()), dtype=torch.int64, device="cpu")

    @override
    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the state of other taps or edges, before any of it is loaded.

        Raises:
            TapError: With all that differ.
        """
        here = self._names()
        saved = _read(state, here)
        problems = [f"only in the state: {name}" for name in saved if name not in here]
        problems += [f"only in the wrapper: {name}" for name in here if name not in saved]
        if not problems and saved != here:
            problems.append(f"the same in another order: {', '.join(saved)}")
        if problems:
            rule = "the state is of other taps or another search space; make the wrapper as it was when it was saved:"
            raise TapError(bullets(rule, problems))

    @override
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, *others: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *others)
        if prefix + _KEY in missing:  # a state of version 0.1.0
            missing.remove(prefix + _KEY)


def _read(state: Tensor, otherwise: list[str]) -> list[str]:
    """The names in a state, also in an average of states and in one cast to floats; others where there are no values.

    They have none on the meta device, and no names in them after noise was added to every tensor.
    """
    try:
        names: list[str] = json.loads(bytes(state.double().round().long().tolist()))
    except (ValueError, NotImplementedError):  # of noise; on the meta device
        return otherwise
    return names
