"""Graph operators: a sparse matrix given by edges, in PyG's convention."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import Cost, Operator

EDGES = 2**18  # edges whose messages are formed at once where weights need gradients


class _Layout:
    """The distinct pairs among the edges in the order of a CSR matrix; it depends on the edges alone."""

    def __init__(self, row: Tensor, col: Tensor, n: int, m: int):
        self.keys, self.pair = torch.unique(row * m + col, return_inverse=True)  # pair: (e,), edge to place
        self.col = self.keys % m if m else self.keys
        ends = torch.bincount(self.keys // m if m else self.keys, minlength=n).cumsum(0)
        self.crow = torch.cat([ends.new_zeros(1), ends])
        self.shape = n, m

    def values(self, weight: Tensor) -> Tensor:
        """Weights ``(..., e)`` summed over repeated edges."""
        out = weight.new_zeros(*weight.shape[:-1], len(self.keys))
        return out.index_add(-1, self.pair, weight)

    def csr(self, weight: Tensor) -> Tensor:
        with warnings.catch_warnings():  # torch says that CSR is in beta; the products used here are tested
            warnings.simplefilter("ignore", UserWarning)
            return torch.sparse_csr_tensor(
                self.crow, self.col, self.values(weight), self.shape, check_invariants=False
            )


class Graph(Operator):
    """``A[target, source] = weight`` on the edges of a graph, 0 elsewhere; repeated edges add up.

    Args:
        edge_index: ``(2, e)`` int64, row 0 = source, row 1 = target, as in PyG.
        weight: ``(e,)`` or ``(..., e)``; None means 1.
        num_targets, num_sources: sizes; the second defaults to the first.
        dtype: of the weights where none are given.

    Time e a column. It multiplies as a CSR matrix, one for each leading index of the weight. The edges are sorted
    once; the values are read again where the weight was changed in place. Gradients flow to values and weights.

    Raises:
        TypeError, ValueError: an edge index that is not int64 ``(2, e)`` or out of range, weights of another length.
    """

    _hadamard_order = 2

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
        self._size = num_targets, num_targets if num_sources is None else num_sources
        self._layouts: dict[bool, _Layout] = {}
        self._flipped = False  # whether the shared layouts are those of the transpose
        if weight is None:
            weight = torch.ones(
                edge_index.shape[1], dtype=dtype or torch.get_default_dtype(), device=edge_index.device
            )
        self._set_weight(weight)

    def _set_weight(self, weight: Tensor) -> None:
        if weight.shape[-1:] != self.source.shape or not weight.is_floating_point():
            raise ValueError(
                f"Graph: weight has shape {tuple(weight.shape)} and dtype {weight.dtype}; expected float (..., {len(self.source)}), one for each edge."
            )
        self.weight = self._like = weight
        self._csr: dict[tuple[torch.dtype, bool], tuple[int | None, Tensor]] = {}
        self.shape = torch.Size((*weight.shape[:-1], *self._size))

    def with_weight(self, weight: Tensor) -> Graph:
        """The same edges with other weights ``(..., e)``; what was sorted is shared."""
        out = Graph.__new__(Graph)
        out._share(self)
        out._set_weight(weight)
        return out

    def _share(self, other: Graph) -> None:
        self.edge_index, self.source, self.target = other.edge_index, other.source, other.target
        self._size, self._layouts, self._flipped = other._size, other._layouts, other._flipped

    @property
    def mT(self) -> Graph:  # noqa: N802
        """The transpose is a graph: the edges the other way round."""
        out = self.with_weight(self.weight)
        out.edge_index, out.source, out.target = self.edge_index.flip(0), self.target, self.source
        out._size, out._flipped = (self._size[1], self._size[0]), not self._flipped
        out.shape = torch.Size((*self.weight.shape[:-1], *out._size))
        return out

    def scale(self, left: Tensor | None = None, right: Tensor | None = None) -> Operator:
        """``diag(left) A diag(right)``: for plain diagonals again a graph, so that a law costs nothing afterwards.

        Edges of a target or source whose factor is 0 are dropped: what they would carry may hold anything.
        """
        if any(d is not None and d.ndim > 1 for d in (left, right)):
            return super().scale(left, right)
        factors = [d[index] for d, index in ((left, self.target), (right, self.source)) if d is not None]
        weight, keep = self.weight, torch.ones_like(self.source, dtype=torch.bool)
        for factor in factors:
            weight, keep = weight * factor.to(weight.dtype), keep & (factor != 0)
        if bool(keep.all()):
            return self.with_weight(weight)
        return Graph(self.edge_index[:, keep], weight[..., keep], *self._size)

    def _matmul(self, v: Tensor) -> Tensor:
        return self._multiply(v, transpose=False)

    def _rmatmul(self, u: Tensor) -> Tensor:
        return self._multiply(u, transpose=True)

    def _multiply(self, v: Tensor, transpose: bool) -> Tensor:
        if self.weight.ndim == 1:
            return _CsrProduct.apply(self.weight, v, self, transpose)
        lead = torch.broadcast_shapes(self.weight.shape[:-1], v.shape[:-2])
        weights = self.weight.expand(*lead, -1).reshape(lead.numel(), -1)
        values = v.expand(*lead, *v.shape[-2:]).reshape(lead.numel(), *v.shape[-2:])
        parts = [self.with_weight(w)._multiply(x, transpose) for w, x in zip(weights, values, strict=True)]
        size = self._size[1] if transpose else self._size[0]
        return (torch.stack(parts) if parts else v.new_zeros(0)).reshape(*lead, size, v.shape[-1])

    def _layout(self, transpose: bool = False) -> _Layout:
        key = transpose != self._flipped
        if key not in self._layouts:
            n, m = self._size
            self._layouts[key] = (
                _Layout(self.source, self.target, m, n)
                if transpose
                else _Layout(self.target, self.source, n, m)
            )
        return self._layouts[key]

    def csr(self, dtype: torch.dtype, transpose: bool = False) -> Tensor:
        """The matrix (or its transpose) of a weight ``(e,)`` as a torch CSR tensor; no gradients.

        Made once for each type, and again where the weight was changed in place.
        """
        version = None if self.weight.is_inference() else self.weight._version
        held, csr = self._csr.get((dtype, transpose), (None, None))
        if csr is None or version is None or held != version:
            csr = self._layout(transpose).csr(self.weight.detach().to(dtype))
            self._csr[dtype, transpose] = version, csr
        return csr

    def _entries(self, i: Tensor, j: Tensor) -> Tensor:
        layout = self._layout()
        if not len(layout.keys):
            return self.weight.new_zeros(*self.weight.shape[:-1], *torch.broadcast_shapes(i.shape, j.shape))
        wanted = (i * self._size[1] + j).contiguous()
        place = torch.searchsorted(layout.keys, wanted).clamp(max=len(layout.keys) - 1)
        values = layout.values(self.weight.to(torch.promote_types(self.dtype, torch.float32)))
        return torch.where(layout.keys[place] == wanted, values[..., place], 0.0)

    def _multiple(self, scalar: float | Tensor) -> Operator:
        return self.with_weight(self.weight * scalar)

    def _hadamard(self, other: Operator) -> Operator:
        return self.with_weight(self.weight * other.entries(self.target, self.source))

    def cost(self) -> Cost:
        return Cost(self.weight.numel(), 0 if self.weight.ndim == 1 else len(self.source))


class _CsrProduct(torch.autograd.Function):
    """``A v`` or ``A^T v`` with the cached CSR forms; heads and batches become columns."""

    @staticmethod
    def forward(ctx, weight: Tensor, v: Tensor, graph: Graph, transpose: bool) -> Tensor:
        # the weight is saved so that a change in place before the backward pass is an error
        held = None if weight.is_inference() else weight
        ctx.save_for_backward(held, v if ctx.needs_input_grad[0] else None)
        ctx.graph, ctx.transpose = graph, transpose
        return _csr_product(graph.csr(v.dtype, transpose), v)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        graph, transpose = ctx.graph, ctx.transpose
        _, v = ctx.saved_tensors
        grad_v = grad_w = None
        if ctx.needs_input_grad[1]:
            grad_v = _csr_product(graph.csr(grad.dtype, not transpose), grad)
        if ctx.needs_input_grad[0]:
            into, out_of = (graph.source, graph.target) if transpose else (graph.target, graph.source)
            parts = [
                (grad.index_select(-2, i) * v.index_select(-2, o)).sum(-1).sum_to_size(len(i))
                for i, o in zip(into.split(EDGES), out_of.split(EDGES), strict=True)
            ]
            grad_w = (torch.cat(parts) if parts else grad.new_zeros(0)).to(graph.dtype)
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
