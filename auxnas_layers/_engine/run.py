"""Running the networks of one forward pass: in lock-step, or one after the other if the primary receives nothing."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from auxnas_layers._engine.lockstep import run_lockstep
from auxnas_layers._engine.taps import Branch, Exchange, PrimaryVisits, tapped
from auxnas_layers._engine.workers import WorkerPool
from auxnas_layers._torch.graphs import is_capturing, one_step
from auxnas_layers._torch.state import CallState, is_tracing, is_transforming
from auxnas_layers.errors import ExportError, LayoutError
from auxnas_layers.features.taps import Layer
from auxnas_layers.search.gates import Gate


def run(
    primary: Branch, auxes: Mapping[str, Branch], exchange: Exchange, workers: WorkerPool, *, lockstep: bool
) -> tuple[Any, dict[str, Any]]:
    """Run the primary network and the auxiliaries, giving the features of every tap to `exchange`.

    Args:
        primary: The primary network, its inputs and all its tapped layers.
        auxes: The same for each auxiliary.
        exchange: Takes features and returns fused ones.
        workers: The threads in which auxiliaries run in lock-step.
        lockstep: Whether the primary receives features of an auxiliary, so that the networks must take turns.

    Returns:
        What the primary network returned, and what each auxiliary returned.

    Raises:
        TapError: If a tap is not reached exactly once and in order, or returns no feature.
    """
    with one_step():
        if lockstep:
            return run_lockstep(primary, auxes, exchange, workers)
        return _run_sequential(primary, auxes, exchange)


def _run_sequential(primary: Branch, auxes: Mapping[str, Branch], exchange: Exchange) -> tuple[Any, dict[str, Any]]:
    """Run the primary network, keeping features at its taps; then each auxiliary, fusing at its taps."""
    state, visits = CallState(), PrimaryVisits(auxes)

    def keep(layer: Layer, feature: Tensor) -> Tensor:
        visits.arrive(layer.name)
        with state.restored():
            exchange.keep(layer, feature)
            return exchange.fuse(layer, feature)  # the feature itself, if its fusion has nothing to do

    with tapped(primary, state, keep):
        primary_output = primary.inputs.call(primary.net)
    visits.finish()
    return primary_output, {aux: _run_aux(branch, state, exchange) for aux, branch in auxes.items()}


def _run_aux(branch: Branch, state: CallState, exchange: Exchange) -> Any:
    visits = branch.visits()

    def fuse(layer: Layer, feature: Tensor) -> Tensor:
        visits.arrive(layer.name)
        with state.restored():
            return exchange.fuse(layer, feature)

    with tapped(branch, state, fuse):
        output = branch.inputs.call(branch.net)
    visits.finish()
    return output


def refuse_transforms() -> None:
    """Refuse to make parameters that would belong to a transform.

    Raises:
        LayoutError: If a transform of torch.func is active.
    """
    if is_transforming():
        raise LayoutError(
            "the edges have no size yet, and cannot get one inside torch.func; give AuxNASWrapper(..., "
            "example_inputs=...), or call the wrapper once before"
        )


def refuse_tracing() -> None:
    """Refuse to run where the turns of the networks cannot be recorded.

    Raises:
        ExportError: Under torch.jit.trace or torch.export.
    """
    if is_tracing():
        raise ExportError(
            "joined networks cannot be traced or exported; export what wrapper.export_primary() returns, or record one "
            "forward of what export_multitask() returns by torch.fx.experimental.proxy_tensor.make_fx"
        )


def refuse_capture(sized: bool, gates: Iterable[Gate]) -> None:
    """Refuse to run where numbers must be read from a device that can be asked for none.

    Args:
        sized: Whether the edges have their sizes.
        gates: All gates, whose values the host knows if they are settled.

    Raises:
        ExportError: In the capture of a CUDA graph, if sizes or values are missing.
    """
    if is_capturing() and not (sized and all(gate.settled() is not None for gate in gates)):
        found = "some still move, or may have been changed elsewhere" if sized else "there was no forward yet"
        raise ExportError(
            "a CUDA graph records which edges are open, so every gate must be closed, kept or fixed, and known from a "
            f"forward before the capture; {found}. Call wrapper(...) once before, capture after "
            "wrapper.close_aux_to_primary_() or wrapper.discretize_(), or capture blocks of the networks"
        )
