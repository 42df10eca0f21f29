"""The search of Aux-NAS as its authors run it. [A]: ICLR 2024, released configuration."""

from auxnas_layers import AuxNAS
from auxnas_layers.search import SigmoidGate


class PaperSearch(AuxNAS):
    """Aux-NAS as released: gates into the primary are only penalised; what stays open is cut in the end."""

    def ceiling(self, progress: float) -> float:
        """None."""
        return 1.0


PAPER = PaperSearch(
    close=(0.5, 0.8),  # over which the penalty rises [A]
    l1=1000.0,  # [A]
    aux_to_primary=SigmoidGate,
    aux_to_primary_start=0.001,  # [A]
    primary_to_aux=SigmoidGate,
    primary_to_aux_start=0.5,  # [A]
    own_share=1.0,
    start="zero",  # [A]
)
