"""Laws: what an operator conserves. Operator in, operator out, at the operator's own order of cost.

Here: none, row, mean, sym, sinkhorn. Laws with ``uses_columns`` (sym, sinkhorn) would leak the future of a
causal operator; ``row`` would not.
"""

from .base import Law
from .diagonal import Mean, NoLaw, Row, Sym
from .sinkhorn import Sinkhorn

none, row, mean, sym, sinkhorn = NoLaw(), Row(), Mean(), Sym(), Sinkhorn()

LAWS: dict[str, Law] = {law.name: law for law in (none, row, mean, sym, sinkhorn)}

__all__ = ["LAWS", "Law", "Mean", "NoLaw", "Row", "Sinkhorn", "Sym", "mean", "none", "row", "sinkhorn", "sym"]
