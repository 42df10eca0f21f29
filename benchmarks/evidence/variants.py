"""What the ablations change of the default, one thing at a time."""

from dataclasses import replace
from typing import Any

from cheaper import CHEAPER
from demo import PaperSearch
from methods import LIGHT, METHODS, NEVER_STOPPED, OURS, STOP_RULE, LookAhead, Method

from auxnas_layers import AuxG, AuxNAS
from auxnas_layers.search import ClampedGate, SigmoidGate

DEFAULT = METHODS[OURS]
UNSTOPPED = "never alone"


def ours(**changes: Any) -> Method:
    """The default with other options of `AuxNAS`."""
    return replace(DEFAULT, search=AuxNAS(**changes))


ABLATIONS: dict[str, dict[str, Method]] = {
    "auxiliary network": {LIGHT: METHODS[LIGHT]},
    "auxiliary loss": {
        "a third of the weight": replace(DEFAULT, aux_factor=1 / 3),
        "three times the weight": replace(DEFAULT, aux_factor=3.0),
    },
    "how edges start": {
        "own share 0": ours(own_share=0.0),
        "own share 0.5": ours(own_share=0.5),
        "own share 1, edges zero": ours(own_share=1.0, start="zero"),
    },
    "directions": {"no edges into the primary": replace(DEFAULT, search=AuxG())},
    "reach": {"reach 1": replace(DEFAULT, reach=1)},
    "taps": {"the last tap": replace(DEFAULT, taps=(3,)), "the first two taps": replace(DEFAULT, taps=(0, 1))},
    "closing": {
        "closing from 0.4 to 0.7": ours(close=(0.4, 0.7)),
        "cut at the end": replace(DEFAULT, search=PaperSearch(l1=0.0)),
        "sigmoid gates": ours(aux_to_primary=SigmoidGate),
    },
    "gates towards the auxiliary": {
        "gates learned with the weights": ours(primary_to_aux=ClampedGate),
        "gates learned on another half": replace(ours(primary_to_aux=ClampedGate), halves=True),
        "gates learned one step ahead": LookAhead(search=AuxNAS(primary_to_aux=ClampedGate), **STOP_RULE),
    },
    "primary alone": {
        UNSTOPPED: replace(DEFAULT, **NEVER_STOPPED),
        "alone from 0.5": replace(DEFAULT, unless_aligned=False),
        "alone from 0.75": replace(DEFAULT, alone_from=0.75, unless_aligned=False),
    },
}
"""By what they change; `OURS` belongs to each group."""
VARIANTS = METHODS | CHEAPER | {name: method for group in ABLATIONS.values() for name, method in group.items()}
