"""Laws: what an operator conserves. Operator in, operator out, at the operator's own order of cost.

Here: none, row, mean, sym, sinkhorn, flow. Laws with ``uses_columns`` (sym, sinkhorn, flow) would leak the future of a
causal operator; ``row`` would not. The causal form of ``flow`` is ``osmose.ops.flow``.
"""

from .base import Law
from .diagonal import Mean, NoLaw, Row, Sym
from .flow import Flow, Flows
from .sinkhorn import Sinkhorn

none, row, mean, sym, sinkhorn, flow = NoLaw(), Row(), Mean(), Sym(), Sinkhorn(), Flow()

LAWS: dict[str, Law] = {law.name: law for law in (none, row, mean, sym, sinkhorn, flow)}

__all__ = [
    "LAWS",
    "Flow",
    "Flows",
    "Law",
    "Mean",
    "NoLaw",
    "Row",
    "Sinkhorn",
    "Sym",
    "flow",
    "mean",
    "none",
    "row",
    "sinkhorn",
    "sym",
]
