"""Every tap fires exactly once per forward, in order, or an error says which did not and why that may be."""

from collections.abc import Sequence

from auxnas_layers.errors import TapError


class Visits:
    """The taps of one network that have been reached so far in one forward.

    Args:
        role: Which network, for messages.
        names: The taps' module names, in the order in which they must be reached.
    """

    def __init__(self, role: str, names: Sequence[str]) -> None:
        self.role, self.names, self.count = role, list(names), 0

    def arrive(self, name: str) -> None:
        """Note that a tap has been reached.

        Raises:
            TapError: If it is not the next one.
        """
        if name in self.names[: self.count]:
            raise TapError(
                f"{self.role} tap {name!r} was called more than once in one forward; tap a layer that is called once, "
                "such as the block around it, or tell the two networks' calls apart with two modules"
            )
        if name != self.names[self.count]:
            raise TapError(
                f"{self.role} tap {name!r} was reached before {self.names[self.count]!r}; list the taps in "
                "the order in which the network calls them, as list_taps(net, *inputs) prints it"
            )
        self.count += 1

    def finish(self) -> None:
        """Check at the end of the forward that all have been reached.

        Raises:
            TapError: If some have not.
        """
        if missing := self.names[self.count :]:
            raise TapError(
                f"the {self.role} forward ended without reaching {', '.join(map(repr, missing))}. Likely causes: this "
                "input takes another path; the layer's .forward() or its weight is used directly (as "
                "MultiheadAttention does with out_proj), so that no hook fires; the network was compiled and run "
                "before it was wrapped (compile it after wrapping, or compile its blocks); or the layer runs in "
                "another thread, as inside the auxiliary of another wrapper. Tap another layer: "
                "list_taps(net, *inputs) prints those that are called"
            )
