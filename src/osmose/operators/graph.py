"""Graph operators: a sparse matrix given by edges, in PyG's convention."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import Cost, Operator

EDGES = 2**18  # edges whose messages are formed at once where weights differ between heads or need gradients


class Graph(Operator):
    """``A[target, source] = weight`` on the edges of a graph, 0 elsewhere; repeated edges add up.

    Args:
        edge_index: ``(2, e)`` int64, row 0 = source, row 1 = target, as in PyG.
        weight: ``(e,)`` or ``(..., e)``; None means 1.
        num_targets, num_sources: sizes; the second defaults to the first.
        dtype: of the weights where none are given.

    Time e a column. One weight for all leading dimensions multiplies as a CSR matrix, O(n) memory;
    the two CSR forms are made once. Gradients flow to values and weights.

    Raises:
        TypeError, ValueError: an edge index that is not int64 ``(2, e)`` or out of range, weights of another length.
    """

    def __init__(
        self,
        edge_index: Tensor,
        weight: Tensor | None = None,
        num_targets: int | None = None,
        num_sources: int | None = None,
        *,
        dtype: torch.dtype | None = None,
    ):
        check_edge_index(edge_index, num_targets, num_sources, "Graph")
        if num_targets is None:
            num_targets = int(edge_index.max()) + 1 if edge_index.numel() else 0
        self.edge_index = edge_index
        self.source, self.target = edge_index
        if weight is None:
            weight = torch.ones(
                edge_index.shape[1], dtype=dtype or torch.get_default_dtype(), device=edge_index.device
            )
        if weight.shape[-1:] != edge_index.shape[1:] or not weight.is_floating_point():
            raise ValueError(
                f"Graph: weight has shape {tuple(weight.shape)} and dtype {weight.dtype}; expected float (..., {edge_index.shape[1]}), one for each edge."
            )
        self.weight = self._like = weight
        self._csr: dict[tuple[torch.dtype, bool], Tensor] = {}
        self.shape = torch.Size(
            (*weight.shape[:-1], num_targets, num_targets if num_sources is None else num_sources)
        )

    def with_weight(self, weight: Tensor) -> Graph:
        """The same edges with other weights ``(..., e)``."""
        return Graph(self.edge_index, weight, self.shape[-2], self.shape[-1])

    def with_self_loops(self) -> Graph:
        """``A + I`` for a square graph: one more edge of weight 1 for each node."""
        node = torch.arange(self.shape[-1], device=self.device)
        weight = torch.cat([self.weight, self.weight.new_ones(*self.weight.shape[:-1], len(node))], -1)
        return Graph(torch.cat([self.edge_index, node.expand(2, -1)], 1), weight, *self.shape[-2:])

    def scale(self, left: Tensor | None = None, right: Tensor | None = None) -> Operator:
        """``diag(left) A diag(right)``: for plain diagonals again a graph, so that a law costs nothing afterwards."""
        if any(d is not None and d.ndim > 1 for d in (left, right)):
            return super().scale(left, right)
        weight = self.weight
        for diagonal, index in ((left, self.target), (right, self.source)):
            weight = weight if diagonal is None else weight * diagonal[index].to(weight.dtype)
        return self.with_weight(weight)

    def _matmul(self, v: Tensor) -> Tensor:
        return self._multiply(v, transpose=False)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self._multiply(u, transpose=True)

    def _multiply(self, v: Tensor, transpose: bool) -> Tensor:
        wide = torch.promote_types(torch.promote_types(self.dtype, v.dtype), torch.float32)
        v_wide = v.to(wide)
        if self.weight.ndim == 1:
            return _CsrProduct.apply(self.weight.to(wide), v_wide, self, transpose).to(v.dtype)
        into, out_of = (self.source, self.target) if transpose else (self.target, self.source)
        size = self.shape[-1] if transpose else self.shape[-2]
        lead = torch.broadcast_shapes(self.weight.shape[:-1], v.shape[:-2])
        out = v_wide.new_zeros(*lead, size, v.shape[-1])
        message = v_wide.index_select(-2, out_of) * self.weight.unsqueeze(-1).to(wide)
        return out.index_add(-2, into, message.expand(*lead, -1, -1)).to(v.dtype)

    def csr(self, dtype: torch.dtype, transpose: bool = False) -> Tensor:
        """The matrix (or its transpose) as a torch CSR tensor, made once for each type; no gradients."""
        if (dtype, transpose) not in self._csr:
            row, col = (self.source, self.target) if transpose else (self.target, self.source)
            m, n = (self.shape[-2:]) if transpose else (self.shape[-1], self.shape[-2])
            order = torch.argsort(row * m + col)
            crow = torch.cat([row.new_zeros(1), torch.bincount(row, minlength=n).cumsum(0)])
            with (
                warnings.catch_warnings()
            ):  # torch says that CSR is in beta; the products used here are tested
                warnings.simplefilter("ignore", UserWarning)
                weight = self.weight.detach()[order].to(dtype)
                self._csr[dtype, transpose] = torch.sparse_csr_tensor(
                    crow, col[order], weight, (n, m), check_invariants=False
                )
        return self._csr[dtype, transpose]

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        key, order = torch.sort(self.target * self.shape[-1] + self.source)
        wanted = (i * self.shape[-1] + j).contiguous()
        low, high = torch.searchsorted(key, wanted), torch.searchsorted(key, wanted, right=True)
        running = torch.cat(
            [self.weight.new_zeros(*self.weight.shape[:-1], 1), self.weight[..., order].cumsum(-1)], -1
        )
        single = (
            self.weight[..., order[low.clamp(max=max(len(key) - 1, 0))]] if len(key) else running[..., high]
        )
        many = running[..., high] - running[..., low]
        return torch.where(high - low == 1, single, torch.where(high > low, many, 0.0))

    def cost(self) -> Cost:
        edges = self.weight.numel()
        return Cost(edges, 0 if self.weight.ndim == 1 else edges)


class _CsrProduct(torch.autograd.Function):
    """``A v`` or ``A^T v`` with the cached CSR forms; heads and batches become columns."""

    @staticmethod
    def forward(ctx, weight: Tensor, v: Tensor, graph: Graph, transpose: bool) -> Tensor:
        ctx.save_for_backward(v if ctx.needs_input_grad[0] else None)
        ctx.graph, ctx.transpose = graph, transpose
        return _csr_product(graph.csr(v.dtype, transpose), v)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        graph, transpose = ctx.graph, ctx.transpose
        grad_v = grad_w = None
        if ctx.needs_input_grad[1]:
            grad_v = _csr_product(graph.csr(grad.dtype, not transpose), grad)
        if ctx.needs_input_grad[0]:
            (v,) = ctx.saved_tensors
            into, out_of = (graph.source, graph.target) if transpose else (graph.target, graph.source)
            parts = [
                (grad.index_select(-2, i) * v.index_select(-2, o)).sum(-1).sum_to_size(len(i))
                for i, o in zip(into.split(EDGES), out_of.split(EDGES), strict=True)
            ]
            grad_w = torch.cat(parts) if parts else grad.new_zeros(0)
        return grad_w, grad_v, None, None


def _csr_product(csr: Tensor, v: Tensor) -> Tensor:
    lead, (m, c) = v.shape[:-2], v.shape[-2:]
    flat = v if not lead else v.movedim(-2, 0).reshape(m, -1)
    with torch.autocast(v.device.type, enabled=False):
        out = csr @ flat.contiguous() if flat.shape[1] else flat.new_zeros(csr.shape[0], 0)
    return out if not lead else out.reshape(-1, *lead, c).movedim(0, -2)


def check_edge_index(edge_index: Tensor, num_targets: int | None, num_sources: int | None, what: str) -> None:
    """Raise where ``edge_index`` is not int64 ``(2, e)`` with sources and targets in range."""
    if edge_index.dtype != torch.int64 or edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise TypeError(
            f"{what}: edge_index has dtype {edge_index.dtype} and shape {tuple(edge_index.shape)}; "
            "expected int64 of shape (2, edges), row 0 = source, row 1 = target."
        )
    if num_targets is None or not edge_index.numel():
        return
    for row, name, size in (
        (0, "sources", num_targets if num_sources is None else num_sources),
        (1, "targets", num_targets),
    ):
        low, high = int(edge_index[row].min()), int(edge_index[row].max())
        if low < 0 or high >= size:
            raise ValueError(
                f"{what}: edge_index row {row} ({name}) goes from {low} to {high}; expected 0 to {size - 1}."
            )
