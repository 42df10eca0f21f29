"""The stop rule under trainers: callbacks for Lightning and transformers, neither of which the library needs.

`LightningStopRule` and `TransformersStopRule` are made when they are imported from here, from that package.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from math import inf
from typing import Any

from auxnas_layers.errors import SearchError
from auxnas_layers.stopping import StopRule


class _LightningHooks:
    """Asks a rule at the start of each training batch, and keeps its state in Lightning's checkpoints.

    The module that trains asks ``rule.going_on``. There is one state in a checkpoint for each `name`.

    Args:
        rule: The rule, of the wrapper that the module trains.
        progress: Share of training that is done, in [0, 1], by the trainer; by default its steps over those that it
            estimates, of all optimisers together where the module steps them itself.
        batch: What the rule gets of a training batch; by default all of it.
        name: Tells several rules in one trainer apart.

    Raises:
        SearchError: See `StopRule.step`; also if the trainer does not know how long it will train.
    """

    def __init__(
        self,
        rule: StopRule,
        progress: Callable[[Any], float] | None = None,
        batch: Callable[[Any], Any] | None = None,
        name: str = "StopRule",
    ) -> None:
        self.rule, self._name = rule, name
        self._progress, self._batch = progress or _progress_of, batch

    @property
    def state_key(self) -> str:
        return self._name

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rule.step(self._progress(trainer), self._batch(batch) if self._batch else batch)

    def state_dict(self) -> dict[str, Any]:
        return self.rule.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.rule.load_state_dict(state_dict)


def _progress_of(trainer: Any) -> float:
    """Steps of all optimisers over those expected."""
    expected = trainer.estimated_stepping_batches
    if not 0 < expected < inf:
        raise SearchError(
            f"the trainer does not know how many steps it will take (max_epochs={trainer.max_epochs}, max_steps="
            f"{trainer.max_steps}); set max_steps, or say how far it is: LightningStopRule(rule, progress=lambda "
            "trainer: trainer.global_step / 10_000)"
        )
    if not trainer.lightning_module.automatic_optimization:  # the estimate is of one optimiser, but all are counted
        expected *= max(1, len(trainer.optimizers))
        expected = expected if trainer.max_steps == -1 else min(expected, trainer.max_steps)
    return min(1.0, float(trainer.global_step / expected))


class _TransformersHooks:
    """Keeps the state of a rule in the checkpoints of a transformers `Trainer`.

    A `TrainerCallback` does not see batches: ask the rule in `compute_loss`, if the model is in train mode, by
    ``rule.step(self.state.global_step / self.state.max_steps, inputs)``.

    Args:
        rule: The rule, of the wrapper that the trainer trains.
        name: Tells several rules in one trainer apart.
    """

    def __init__(self, rule: StopRule, name: str = "StopRule") -> None:
        self.rule, self.name = rule, name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.name in state.stateful_callbacks:  # it was read from a checkpoint
            self.rule.load_state_dict(state.stateful_callbacks[self.name])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.stateful_callbacks[self.name] = self.rule.state_dict()  # a checkpoint may be written next


def _base(*packages: str, name: str) -> Any:
    """The callback class of the first of these packages that is installed."""
    found = next((package for package in packages if find_spec(package.split(".")[0])), packages[0])
    return getattr(import_module(found), name)


def __getattr__(name: str) -> Any:
    """The callbacks; the first time one is asked for, its package is imported."""
    bases: tuple[type, Any]
    if name == "LightningStopRule":
        bases = _LightningHooks, _base("lightning.pytorch", "pytorch_lightning", name="Callback")
    elif name == "TransformersStopRule":
        bases = _TransformersHooks, _base("transformers", name="TrainerCallback")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = type(name, bases, {"__doc__": bases[0].__doc__, "__module__": __name__})
    globals()[name] = made
    return made
