"""Joint training, after which the primary network goes on alone.

The second training has the same settings, a cycle of its own and half the steps, so that both take 1.5 times the steps.
"""

from dataclasses import replace

from methods import METHODS, OURS, SHARED, Method
from phases import Phase

THEN_ALONE = Phase(), Phase("primary", length=0.5)
POST_TRAINED: dict[str, Method] = {
    f"{name}, then the primary alone": replace(METHODS[name], phases=THEN_ALONE) for name in (SHARED, OURS)
}
