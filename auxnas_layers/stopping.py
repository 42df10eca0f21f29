"""The stop rule: it stops auxiliaries that are not learned, or that do not seem to help."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, distributed, nn
from typing_extensions import override

from auxnas_layers._engine.joint import JoinedNets
from auxnas_layers.alignment import FEWEST, Alignment, explained_loss
from auxnas_layers.errors import AuxiliaryWarning, SearchError
from auxnas_layers.features.inputs import Inputs, as_inputs, floating_parameter
from auxnas_layers.features.undisturbed import undisturbed
from auxnas_layers.held_out import HeldOut, on_device, other_samples
from auxnas_layers.search.penalties import check_progress
from auxnas_layers.verdict import LEARNED, Verdict, is_aligned, is_learned

Loss = Callable[[Any, Any], Tensor]
"""From a network's outputs and a batch to a scalar."""


class StopRule:
    """Decides which auxiliaries go on: at a fifth of training those that are learned, at half those that also help.

    By its defaults it is the rule of the studies (docs/results, "Do no harm"). It measures up to half of training,
    at the beginning of some steps, on held-out samples, and leaves no trace: no gradients, buffers or random states
    change. Once no auxiliary goes on, it closes the wrapper's edges into the primary.

    Args:
        wrapper: The wrapper, not inside `DistributedDataParallel`; or another module that has a `primary_net` and
            returns a pair of outputs, the primary's and the auxiliary's, the latter by name if there are several.
        held_out: Batches of held-out samples with primary and auxiliary labels: a list or a data loader, read again
            from its beginning after the last one. Take validation samples, not training samples.
        primary_loss: Primary loss, of the primary's outputs and a batch.
        aux_loss: Auxiliary loss, not negative, of the auxiliary's outputs and a batch; with several, a mapping from
            names to losses. Its weight in the training loss does not matter here.
        inputs: The wrapper's inputs in a batch, as `example_inputs` takes them; by default its first element.
        other_labels: The batch with the labels of other samples; by default every tensor, with the samples first, in
            another order.
        measurements: Measurements up to `until` (studies: 30); a verdict takes at least 10.
        explains: Share of its held-out loss that an auxiliary must explain, unitless (studies: 0.02); None: any share.
        learned_by: Progress by which it must explain that share, in (0, 1]; measured from half of this progress on
            (studies: 0.2).
        until: Progress up to which cosines are measured, and at which they decide, in (0, 1] (studies: 0.5).

    Raises:
        SearchError: If an argument is not as above.

    >>> from auxnas_layers import AuxNASWrapper
    >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(2)]
    >>> wrapper = AuxNASWrapper(*nets, ["0"], example_inputs=torch.ones(2, 4))
    >>> x = torch.rand(3, 8, 4)
    >>> held_out = [(inputs, inputs.sum(1, keepdim=True), torch.rand(8, 1)) for inputs in x]
    >>> losses = (lambda output, batch, i=i: nn.functional.l1_loss(output, batch[i]) for i in (1, 2))
    >>> rule = StopRule(wrapper, held_out, primary_loss=next(losses), aux_loss=next(losses))
    >>> rule.step(0.0, held_out[0])
    ('aux',)
    """

    def __init__(
        self,
        wrapper: nn.Module,
        held_out: Iterable[Any],
        *,
        primary_loss: Loss,
        aux_loss: Loss | Mapping[str, Loss],
        inputs: Callable[[Any], Any] | None = None,
        other_labels: Callable[[Any], Any] = other_samples,
        measurements: int = 30,
        explains: float | None = LEARNED,
        learned_by: float = 0.2,
        until: float = 0.5,
    ) -> None:
        _check_net(wrapper, aux_loss)
        _check_times(measurements, learned_by, until)
        self._wrapper: Any = wrapper
        self._primary_loss, self._aux_loss = primary_loss, aux_loss
        self._inputs, self._other_labels = inputs or _first, other_labels
        self._held_out = HeldOut(held_out)
        self.measurements, self.explains, self.learned_by, self.until = measurements, explains, learned_by, until
        self.alignment = Alignment(wrapper)
        names = list(aux_loss) if isinstance(aux_loss, Mapping) else ["aux"]
        self.explained: dict[str, list[float]] = {name: [] for name in names}
        self.stopped: dict[str, float] = {}
        self._next = self._reached = 0.0

    def step(self, progress: float, batch: Any) -> tuple[str, ...]:
        """Decide and measure when it is time, and return which auxiliaries go on.

        Call it before the forward of each step. A measurement is taken without autocast to float16, whose gradients
        could vanish.

        Args:
            progress: Share of training that is done, in [0, 1], such as ``step / total_steps``; the same everywhere if
                there are several processes.
            batch: A training batch that carries the auxiliary labels; the primary ones are not used.

        Returns:
            Names of the auxiliaries that go on; nothing if there are none. A single one is called ``"aux"``.

        Raises:
            SearchError: If progress is not in [0, 1]; or if it is time to measure and the wrapper is in eval mode, a
                loss is negative, or a loss or gradient is not finite.
        """
        going_on = self.decide(progress)
        if going_on and self._next <= progress < self.until:
            self._measure(progress, batch)
        return going_on

    @property
    def going_on(self) -> tuple[str, ...]:
        """Names of the auxiliaries that go on."""
        there = self.alignment._auxes(self.explained)
        return tuple(name for name in self.explained if name in there and name not in self.stopped)

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What is known of each auxiliary."""
        cosines = self.alignment.cosines
        return {
            name: Verdict(self.stopped.get(name), tuple(shares), self.explains, tuple(cosines.get(name, ())))
            for name, shares in self.explained.items()
        }

    def decide(self, progress: float) -> tuple[str, ...]:
        """As `step`, without a measurement."""
        progress, before = check_progress(progress), self.going_on
        learned_by, until = (self._reached < time <= progress for time in (self.learned_by, self.until))
        for name in before:
            shares, cosines = self.explained[name], self.alignment.cosines.get(name, [])
            unlearned = learned_by and self.explains is not None and not is_learned(shares, self.explains)
            if unlearned or (until and not is_aligned(cosines)):
                self.stopped[name] = progress
            elif until and len(cosines) < FEWEST:
                _warn_of_too_few(name, len(cosines), self.until)
        self._reached = max(self._reached, progress)
        if before and not self.going_on and hasattr(self._wrapper, "close_aux_to_primary_"):
            self._wrapper.close_aux_to_primary_()
        return self.going_on

    def _measure(self, progress: float, batch: Any) -> None:
        in_time = self.learned_by / 2 <= progress < self.learned_by
        early = not self._next  # the first shows whether shares can be measured, before training has gone on for long
        self._next += self.until / self.measurements
        device = _device(self._wrapper.primary_net)
        held_out, batch = on_device(next(self._held_out), device), on_device(batch, device)
        with _without_half(device.type):
            shares = self._shares(held_out) if self.explains is not None and (in_time or early) else {}
            self.alignment.measure(
                lambda: self._primary_loss(self._call(held_out).call(self._wrapper.primary_net), held_out),
                lambda: self._aux_losses(batch),
            )
        measured = list(self.alignment.cosines.values())
        for name, share in shares.items():
            if in_time:
                self.explained[name].append(share)
                measured.append(self.explained[name])
        _average_last_(measured, device)

    def _call(self, batch: Any) -> Inputs:
        """The inputs of the primary network."""
        call = as_inputs(self._inputs(batch))
        return Inputs(call.args, {key: value for key, value in call.kwargs.items() if key != "aux_inputs"})

    def _outputs(self, batch: Any) -> dict[str, tuple[Loss, Any]]:
        """Loss and outputs of every auxiliary that is still there."""
        outputs = as_inputs(self._inputs(batch)).call(self._wrapper)[1]
        if not isinstance(self._aux_loss, Mapping):
            return {"aux": (self._aux_loss, outputs)}
        return {name: (loss, outputs[name]) for name, loss in self._aux_loss.items() if name in outputs}

    def _aux_losses(self, batch: Any) -> dict[str, Tensor]:
        return {name: loss(outputs, batch) for name, (loss, outputs) in self._outputs(batch).items()}

    def _shares(self, batch: Any) -> dict[str, float]:
        """What each auxiliary explains of its held-out loss."""
        others = self._other_labels(batch)
        with undisturbed(self._wrapper), torch.no_grad():
            found = self._outputs(batch).items()
            return {name: explained_loss(loss, outputs, batch, others) for name, (loss, outputs) in found}

    def state_dict(self) -> dict[str, Any]:
        """All that was measured and decided, as plain numbers, texts, lists and dicts."""
        return {
            "cosines": deepcopy(self.alignment.cosines),
            "explained": deepcopy(self.explained),
            "stopped": dict(self.stopped),
            "next": self._next,
            "reached": self._reached,
            "held_out": self._held_out.taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            SearchError: If it is of other auxiliaries.
        """
        if sorted(state["explained"]) != sorted(self.explained):
            raise SearchError(
                f"the state is of the auxiliaries {sorted(state['explained'])}, the rule of {sorted(self.explained)}; "
                "make the rule with the same aux_loss"
            )
        self.alignment.cosines = {name: list(found) for name, found in state["cosines"].items()}
        self.explained = {name: list(state["explained"][name]) for name in self.explained}
        self.stopped = dict(state["stopped"])
        self._next, self._reached = state["next"], state["reached"]
        self._held_out.skip_to_(state["held_out"])

    @override
    def __repr__(self) -> str:
        return "\n".join(["StopRule(", *(f"  {name}: {found}" for name, found in self.verdicts.items()), ")"])


def _first(batch: Any) -> Any:
    """The first element of a batch."""
    if isinstance(batch, tuple | list) and batch:
        return batch[0]
    raise SearchError(
        f"the inputs are the first element of a batch that is a tuple or list; found a {type(batch).__name__}. "
        "Say where they are: StopRule(..., inputs=lambda batch: batch['images'])"
    )


def _check_net(wrapper: nn.Module, aux_loss: Loss | Mapping[str, Loss]) -> None:
    if not isinstance(getattr(wrapper, "primary_net", None), nn.Module):
        raise SearchError(
            f"StopRule takes the wrapper, or another module that has a primary_net; found a {type(wrapper).__name__}. "
            "Where it is inside another one, as in DistributedDataParallel, give the inner one: StopRule(ddp.module, "
            "...)"
        )
    found = sorted(aux_loss) if isinstance(aux_loss, Mapping) else None
    if isinstance(wrapper, JoinedNets):
        wanted = sorted(wrapper._aux_nets()) if wrapper._named else None
        if found != wanted:
            rule = f"a mapping with a loss for each of {wanted}" if wanted else "one loss, as there is one auxiliary"
            raise SearchError(f"aux_loss is {rule}; found {f'losses of {found}' if found is not None else 'one loss'}")


def _check_times(measurements: int, learned_by: float, until: float) -> None:
    if measurements < FEWEST:
        raise SearchError(
            f"a verdict takes {FEWEST} measurements; give measurements={FEWEST} or more, not {measurements}"
        )
    if not 0 < learned_by <= until <= 1:
        raise SearchError(
            f"an auxiliary is to be learned before it is to help, by shares of training in (0, 1]; found "
            f"learned_by={learned_by}, until={until}. Give such as learned_by=0.2, until=0.5"
        )


def _device(net: nn.Module) -> torch.device:
    found = floating_parameter(net)
    return torch.device("cpu") if found is None else found.device


def _without_half(device: str) -> AbstractContextManager[Any]:
    """No autocast, if it is to float16, in which small gradients vanish where no scaler makes them larger."""
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return torch.autocast(device, enabled=False) if half else nullcontext()


def _average_last_(measured: Sequence[list[float]], device: torch.device) -> None:
    """Put the mean over all processes, if there are several, in place of the last measurement of each kind."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    values = torch.tensor([found[-1] for found in measured], dtype=torch.float64, device=device)
    distributed.all_reduce(values)
    for found, value in zip(measured, (values / distributed.get_world_size()).tolist(), strict=True):
        found[-1] = value


def _warn_of_too_few(name: str, count: int, until: float) -> None:
    warnings.warn(
        f"the stop rule has {count} measurements of {name!r} at {until:g} of training, fewer than {FEWEST}, and lets "
        "it go on. Call rule.step(step / total_steps, batch) at every step from the first one; a training of "
        f"{2 * FEWEST} steps or fewer is too short for it",
        AuxiliaryWarning,
        stacklevel=4,
    )
