"""Exporting the primary network alone: copy, compare, report."""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from auxnas_layers._engine.joint import JoinedNets
from auxnas_layers.export.compare import (
    check_alike,
    largest_difference,
    net_outputs,
    own_outputs,
    refuse_globals,
    wrapper_outputs,
)
from auxnas_layers.export.copying import copy_networks
from auxnas_layers.export.cost import cost_of, measure, warn_uncounted
from auxnas_layers.export.report import ExportReport, check_closed
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.taps import PRIMARY

_CLOSE = (
    "Call wrapper.search_penalty(step / total_steps) in every step and train on: under AuxNAS these edges close by "
    "progress 0.4. Was this checkpoint the best by the score of wrapper.primary_net? Then export that network by "
    "wrapper.export_primary(allow_open=True). To deploy both networks, use search=MTLNAS() and export_multitask()"
)


def export_primary(joined: JoinedNets, call: Inputs | None, *, allow_open: bool) -> tuple[nn.Module, ExportReport]:
    """A copy of the primary network, and the report of its export.

    Args:
        joined: The networks.
        call: Inputs to compare outputs on; None to call no network.
        allow_open: Whether edges into the primary that are still open may be cut.

    Raises:
        ExportError: If an edge into the primary is open, the copy is not the same network, or its outputs differ.
        SearchError: If a gate is NaN.
    """
    architecture = joined.gates.architecture()
    acting = joined.fusions.acting(joined._tapped()[PRIMARY])
    cut = check_closed(architecture, acting, allow_open=allow_open, otherwise=_CLOSE)
    own = set(joined.primary_net.modules())
    (exported,) = copy_networks([joined.primary_net], [module for module in joined.modules() if module not in own])
    report = ExportReport(architecture.edges, cut)
    if call is None:
        refuse_globals(exported, joined.primary_net)
        return exported, report
    inputs = joined._route_example(call)[PRIMARY]
    joint = wrapper_outputs(joined, call).primary
    report = _compared(report, joined, inputs, joint, exported, whole=not (cut or acting))
    cost, own_cost = cost_of(joined, call), measure(exported, inputs)
    warn_uncounted(own_cost, cost.primary, cost.training)
    return exported, replace(report, training=cost.training, primary=cost.primary, exported=own_cost)


def _compared(
    report: ExportReport, joined: JoinedNets, inputs: Inputs, joint: Any, exported: nn.Module, *, whole: bool
) -> ExportReport:
    """The report with what the outputs say.

    Args:
        report: The report without it.
        joined: The networks.
        inputs: Those of the primary.
        joint: What the primary returns in the wrapper.
        exported: Its copy.
        whole: Whether nothing was cut that changes the primary's outputs.

    Raises:
        ExportError: If the primary computes something else in the wrapper than alone, or its copy does.
    """
    output, alone = net_outputs(exported, inputs, joined.primary_net), own_outputs(joined.primary_net, inputs)
    again = partial(own_outputs, joined.primary_net, inputs)
    _, noise = check_alike("the exported network differs from the primary network", output, alone, again, copied=True)
    difference = inside = largest_difference(output, joint)
    if whole:
        what = "the primary network in the wrapper differs from the same one alone"
        inside, other = check_alike(what, joint, alone, again, copied=False)
        noise = max(noise, other)
    exact = None if inside is None else inside == 0
    return replace(report, exact=exact, max_difference=difference, noise=noise)
