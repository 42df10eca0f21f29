"""What the Trainer of Hugging Face looks for on a model, answered for all networks of a wrapper."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from auxnas_layers.errors import AuxNASError


class _OfPrimary:
    """An attribute of the primary network, for as long as a user sets no other on the wrapper."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, nets: Any, owner: Any = None) -> Any:
        return self if nets is None else getattr(nets.primary_net, self.name)


class TrainerModel(nn.Module):
    """A model for the Trainer of Hugging Face, made of several networks; a base class."""

    primary_net: nn.Module

    accepts_loss_kwargs = False
    """The loss is the user's, so the Trainer has to divide it by the number of accumulation steps."""

    def _every_net(self) -> Iterable[nn.Module]:
        raise NotImplementedError  # abstract: the networks of a subclass

    config: Any = _OfPrimary()
    """The primary network's, if it has one."""

    main_input_name: Any = _OfPrimary()
    """The primary network's, if it has one."""

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether a network has activation checkpoints to switch on."""
        return any(getattr(net, "supports_gradient_checkpointing", False) for net in self._every_net())

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether they are switched on in a network."""
        return any(getattr(net, "is_gradient_checkpointing", False) for net in self._every_net())

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Switch on the activation checkpoints of every network that has any.

        Raises:
            AuxNASError: If none has.
        """
        self._call_each("gradient_checkpointing_enable", *args, **kwargs)

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The same under its newer name.

        Raises:
            AuxNASError: If no network has it.
        """
        self._call_each("activation_checkpointing_enable", *args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Switch them off again.

        Raises:
            AuxNASError: If no network has any.
        """
        self._call_each("gradient_checkpointing_disable")

    def _call_each(self, method: str, *args: Any, **kwargs: Any) -> None:
        found = [getattr(net, method) for net in self._every_net() if hasattr(net, method)]
        if not found:
            kinds = ", ".join(type(net).__name__ for net in self._every_net())
            raise AuxNASError(f"no network has {method}(), as those of transformers have; found {kinds}")
        for call in found:
            call(*args, **kwargs)
