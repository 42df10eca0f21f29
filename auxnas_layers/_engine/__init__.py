"""Running two opaque forwards, tap by tap, by `run`; and what trial calls share with it."""

from auxnas_layers._engine.ambient import eager, uncompiled
from auxnas_layers._engine.branch import PRIMARY, Branch
from auxnas_layers._engine.hooks import hooked
from auxnas_layers._engine.run import refuse_tracing, refuse_transforms, run

__all__ = ["PRIMARY", "Branch", "eager", "hooked", "refuse_tracing", "refuse_transforms", "run", "uncompiled"]
