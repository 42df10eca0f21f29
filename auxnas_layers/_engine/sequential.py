"""One network after the other: all that is needed when the primary hears no auxiliary feature."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from auxnas_layers._engine.ambient import Ambient
from auxnas_layers._engine.branch import PRIMARY, Branch, Exchange, PrimaryVisits, tapped


def run_sequential(primary: Branch, auxes: Mapping[str, Branch], exchange: Exchange) -> tuple[Any, dict[str, Any]]:
    """Run the primary network, listening at its taps; then each auxiliary one, fusing at its taps."""
    ambient, visits, outputs = Ambient(), PrimaryVisits(auxes), {}

    def listen(name: str, feature: Tensor) -> Tensor:
        visits.arrive(name)
        with ambient.fusing():
            exchange.hear(PRIMARY, name, feature)
            return exchange.fuse(PRIMARY, name, feature)  # the same one, where its fusion has nothing to do

    with tapped(primary, ambient, listen):
        primary_output = primary.inputs.call(primary.net)
    visits.finish()
    for aux, branch in auxes.items():
        outputs[aux] = _run_aux(branch, ambient, exchange)
    return primary_output, outputs


def _run_aux(branch: Branch, ambient: Ambient, exchange: Exchange) -> Any:
    visits = branch.visits()

    def fuse(name: str, feature: Tensor) -> Tensor:
        visits.arrive(name)
        with ambient.fusing():
            return exchange.fuse(branch.role, name, feature)

    with tapped(branch, ambient, fuse):
        output = branch.inputs.call(branch.net)
    visits.finish()
    return output
