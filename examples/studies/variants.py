"""What the ablations change of the default, one thing at a time."""

from dataclasses import replace
from typing import Any

from methods import METHODS, OURS, Joined, LookAhead, Method

from auxnas_layers import AuxG, AuxNAS, ClampedGate, SigmoidGate

DEFAULT = METHODS[OURS]
LIGHT = "light auxiliary"


def ours(**changes: Any) -> Method:
    """The default with other options of `AuxNAS`."""
    return replace(DEFAULT, search=AuxNAS(**changes))


ABLATIONS: dict[str, dict[str, Method]] = {
    "auxiliary network": {LIGHT: Joined(search=AuxG(), head=True)},
    "how edges start": {
        **{f"own share {share:g}": ours(own_share=share) for share in (0.0, 0.5, 0.9)},
        "own share 1, edges zero": ours(own_share=1.0, start="zero"),
        "own share 1, edges scaled": ours(own_share=1.0, start="scaled"),
    },
    "directions": {"Aux-G, our start": METHODS["Aux-G, our start"]},
    "reach": {f"reach {reach}": replace(DEFAULT, reach=reach) for reach in (1, 2, 4)},
    "taps": {
        "the last tap": replace(DEFAULT, taps=(3,)),
        "the last two taps": replace(DEFAULT, taps=(2, 3)),
        "the first two taps": replace(DEFAULT, taps=(0, 1)),
    },
    "closing": {
        "closing from 0 to 0.1": ours(close=(0.0, 0.1)),
        "closing from 0.4 to 0.7": ours(close=(0.4, 0.7)),
        "closing from 0.7 to 1": ours(close=(0.7, 1.0)),
        "gates start at 1": ours(aux_to_primary_start=1.0),
        "sigmoid gates": ours(aux_to_primary=SigmoidGate),
    },
    "gates towards the auxiliary": {
        "gates learned with the weights": ours(primary_to_aux=ClampedGate),
        "gates learned on another half": replace(ours(primary_to_aux=ClampedGate), halves=True),
        "gates learned one step ahead": LookAhead(search=AuxNAS(primary_to_aux=ClampedGate)),
    },
    "fine-tuning": {
        "primary alone for the last tenth": replace(DEFAULT, alone_from=0.9),
        "primary alone for the last half": replace(DEFAULT, alone_from=0.5),
    },
}
"""By what they change; `OURS` belongs to each group."""
VARIANTS = METHODS | {name: method for group in ABLATIONS.values() for name, method in group.items()}
