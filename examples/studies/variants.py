"""What the ablations change of the default, one thing at a time."""

from dataclasses import replace
from typing import Any

from methods import LIGHT, METHODS, OURS, STOP_RULE, LookAhead, Method, PaperSearch

from auxnas_layers import AuxG, AuxNAS, ClampedGate, SigmoidGate

DEFAULT = METHODS[OURS]


def ours(**changes: Any) -> Method:
    """The default with other options of `AuxNAS`."""
    return replace(DEFAULT, search=AuxNAS(**changes))


ABLATIONS: dict[str, dict[str, Method]] = {
    "auxiliary network": {LIGHT: METHODS[LIGHT]},
    "how edges start": {
        **{f"own share {share:g}": ours(own_share=share) for share in (0.0, 0.5, 0.9)},
        "own share 1, edges zero": ours(own_share=1.0, start="zero"),
        "own share 1, edges scaled": ours(own_share=1.0, start="scaled"),
    },
    "directions": {"no edges into the primary": replace(DEFAULT, search=AuxG())},
    "reach": {f"reach {reach}": replace(DEFAULT, reach=reach) for reach in (1, 2, 4)},
    "taps": {
        "the last tap": replace(DEFAULT, taps=(3,)),
        "the last two taps": replace(DEFAULT, taps=(2, 3)),
        "the first two taps": replace(DEFAULT, taps=(0, 1)),
    },
    "closing": {
        "closing from 0 to 0.05": ours(close=(0.0, 0.05)),
        "closing from 0.4 to 0.7": ours(close=(0.4, 0.7)),
        "closing from 0.9 to 1": ours(close=(0.9, 1.0)),
        "cut at the end": replace(DEFAULT, search=PaperSearch()),
        "gates start at 1": ours(aux_to_primary_start=1.0),
        "sigmoid gates": ours(aux_to_primary=SigmoidGate),
    },
    "gates towards the auxiliary": {
        "gates learned with the weights": ours(primary_to_aux=ClampedGate),
        "gates learned on another half": replace(ours(primary_to_aux=ClampedGate), halves=True),
        "gates learned one step ahead": LookAhead(search=AuxNAS(primary_to_aux=ClampedGate), **STOP_RULE),
    },
    "primary alone": {
        "never alone": replace(DEFAULT, alone_from=1.0),
        "alone from 0.5": replace(DEFAULT, unless_aligned=False),
        "alone from 0.75": replace(DEFAULT, alone_from=0.75, unless_aligned=False),
        "alone from 0.9": replace(DEFAULT, alone_from=0.9, unless_aligned=False),
    },
}
"""By what they change; `OURS` belongs to each group."""
VARIANTS = METHODS | {name: method for group in ABLATIONS.values() for name, method in group.items()}
