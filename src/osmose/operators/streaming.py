"""Products with an elementwise function of all scores, in memory linear in the number of tokens.

``sum_j f(q_i . k_j) v_j`` is computed tile by tile, and its backward computes the tiles again, so that the
``n x m`` weights never exist. A tile fits the cache: what is lost on the second evaluation of ``f`` is won
back on memory traffic.

Shapes: ``P`` flattened leading dimensions, ``n`` targets, ``m`` sources, ``r`` score channels, ``c`` values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["EXP", "SIGMOID", "ScoreKernel", "pairwise_product"]

TILE_ROWS, TILE_COLUMNS = 512, 512  # scores formed at once on a CPU: 1 MB in float32
TILE_GPU = 4096  # rows and columns on an accelerator, where launches cost more than memory


@dataclass(frozen=True)
class ScoreKernel:
    """An elementwise function of scores, with its derivative.

    Args:
        name: shown in errors and costs.
        f: scores to weights, any shape.
        df: ``(scores, weights)`` to the derivative of ``f`` at the scores.
        f_: the same as ``f`` where it may overwrite its argument. Optional, for speed.
        backward_: ``(grad, weights)`` to ``grad * df``, may overwrite ``grad``; for functions whose derivative
            follows from their value. Optional, for speed.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    df: Callable[[Tensor, Tensor], Tensor]
    f_: Callable[[Tensor], Tensor] | None = None
    backward_: Callable[[Tensor, Tensor], Tensor] | None = None

    @classmethod
    def from_function(cls, fn: Callable[[Tensor], Tensor], name: str | None = None) -> ScoreKernel:
        """A kernel from any elementwise function; its derivative is taken by autograd."""

        def df(scores: Tensor, weights: Tensor) -> Tensor:
            with torch.enable_grad():
                s = scores.detach().requires_grad_()
                return torch.autograd.grad(fn(s).sum(), s)[0]

        return cls(name or str(getattr(fn, "__name__", "function")), fn, df)

    def chain(self, grad: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
        """``grad * df(scores)``; ``grad`` may be overwritten."""
        if self.backward_ is not None:
            return self.backward_(grad, weights)
        return grad.mul_(self.df(scores, weights))


def _sigmoid_backward(grad: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward.grad_input(grad, weights, grad_input=grad)


EXP = ScoreKernel("exp", torch.exp, lambda s, w: w, torch.exp_, lambda grad, w: grad.mul_(w))
SIGMOID = ScoreKernel("sigmoid", torch.sigmoid, lambda s, w: w * (1 - w), torch.sigmoid_, _sigmoid_backward)


def pairwise_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: ScoreKernel,
    *,
    q_ptr: Tensor | None = None,
    k_ptr: Tensor | None = None,
    shift: Tensor | None = None,
    column: Tensor | None = None,
) -> Any:
    """``out_i = sum_j f(q_i . k_j) v_j`` without the matrix of weights.

    Args:
        q: ``(..., n, r)``.
        k: ``(..., m, r)``; leading dimensions of all arguments broadcast.
        v: ``(..., m, c)``.
        kernel: the function ``f``.
        q_ptr, k_ptr: ``(S + 1,)`` int64 bounds of packed sets, both or neither: target i and source j form
            a pair only where they are in the same set. A set may be empty on either side.
        shift: ``(..., n)``: ``f(min(q_i . k_j - shift_i, 0))`` instead, for the exponential of scores whose
            row maximum is the shift. A constant for gradients.
        column: ``(..., m)``: one more column of values. Then the result is the pair
            ``out, sum_j f(q_i . k_j) column_j``; ones, or masses, give the row sums.

    Returns:
        ``(..., n, c)``, and ``(..., n)`` with ``column``. Zero where a target has no source. float16 and bfloat16
        are accumulated in float32.

    Raises:
        ValueError: shapes or bounds that do not fit.
        RuntimeError: on a second derivative, which is not provided.

    Cost: time ``n m (r + c)``, for packed sets the sum of it over sets; memory O(n + m) beyond a tile of 1 MB,
    forward and backward. Sets much smaller than a tile are grouped by size into padded batches.
    """
    _check(q, k, v, q_ptr, k_ptr, shift, column)
    bounds = None if q_ptr is None or k_ptr is None else (q_ptr.tolist(), k_ptr.tolist())
    out, sums = _PairwiseProduct.apply(q, k, v, column, shift, kernel, bounds)
    return out if column is None else (out, sums)


@torch.no_grad()
def row_max(
    q: Tensor,
    k: Tensor,
    *,
    q_ptr: Tensor | None = None,
    k_ptr: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """``max_j q_i . k_j`` over the sources of a target, ``(..., n)``; -inf where it has none. No gradient.

    Arguments as in :func:`pairwise_product`; ``present`` ``(..., m)`` bool leaves sources out. Float32 or better.
    Cost: time ``n m r``, for packed sets the sum of it over sets; memory as there.
    """
    _check(q, k, k[..., :0], q_ptr, k_ptr, None, present)
    bounds = None if q_ptr is None or k_ptr is None else (q_ptr.tolist(), k_ptr.tolist())
    lead, (q, k, _, present, _) = _flatten(q, k, k[..., :0], present, None)
    out = q.new_full(q.shape[:2], -torch.inf)
    with torch.autocast(q.device.type, enabled=False):
        for rows, cols in _parts(q.shape[1], k.shape[1], bounds, q.device):
            rows.put(out, _maximum(rows.take(q), cols.take(k), cols.take(present)))
    return out.view(*lead, out.shape[1])


def _maximum(q: Tensor, k: Tensor, present: Tensor | None) -> Tensor:
    out = q.new_full(q.shape[:2], -torch.inf)
    for p, i, j in _tiles(q, k):
        scores = q[p, i] @ k[p, j].mT
        if present is not None:
            scores.masked_fill_(present[p, j].unsqueeze(-2) == 0, -torch.inf)
        out[p, i] = torch.maximum(out[p, i], scores.amax(-1))
    return out


class _PairwiseProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        column: Tensor | None,
        shift: Tensor | None,
        kernel: ScoreKernel,
        bounds: tuple[list[int], list[int]] | None,
    ) -> Any:
        ctx.save_for_backward(q, k, v, column, shift)
        ctx.kernel, ctx.bounds = kernel, bounds
        lead, (q_, k_, v_, u_, s_) = _flatten(q, k, v, column, shift)
        out = v_.new_zeros(*q_.shape[:2], v_.shape[-1])
        sums = None if u_ is None else v_.new_zeros(q_.shape[:2])
        with torch.autocast(q.device.type, enabled=False):
            for rows, cols in _parts(q_.shape[1], k_.shape[1], bounds, q_.device):
                o, t = _forward(
                    kernel, rows.take(q_), cols.take(k_), cols.take(v_, zero=True), cols.take(u_, zero=True),
                    rows.take(s_),
                )  # fmt: skip
                rows.put(out, o)
                rows.put(sums, t)
        dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
        out = out.to(dtype).view(*lead, *out.shape[1:])
        return out, None if sums is None else sums.to(dtype).view(*lead, sums.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_sums: Tensor | None) -> Any:
        inputs = ctx.saved_tensors
        lead, (q, k, v, u, s) = _flatten(*inputs)
        g = grad.to(v.dtype).reshape(*q.shape[:2], v.shape[-1])
        h = None if u is None or grad_sums is None else grad_sums.to(v.dtype).reshape(q.shape[:2])
        needed = ctx.needs_input_grad[:4]
        totals = [torch.zeros_like(x) if need else None for x, need in zip((q, k, v, u), needed, strict=True)]
        with torch.autocast(q.device.type, enabled=False):
            for rows, cols in _parts(q.shape[1], k.shape[1], ctx.bounds, q.device):
                grads = _backward(
                    ctx.kernel, rows.take(q), cols.take(k), cols.take(v, zero=True), cols.take(u, zero=True),
                    rows.take(s), rows.take(g, zero=True), rows.take(h, zero=True), needed,
                )  # fmt: skip
                for side, total, part in zip((rows, cols, cols, cols), totals, grads, strict=True):
                    side.put(total, part)
        reduced = [_unflatten(d, x, lead) for d, x in zip(totals, inputs[:4], strict=True)]
        return (*reduced, None, None, None)


def _forward(
    kernel: ScoreKernel, q: Tensor, k: Tensor, v: Tensor, u: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Dense product of ``(P, n, r)`` with ``(P, m, r)``, tile by tile."""
    out = v.new_zeros(*q.shape[:2], v.shape[-1])
    sums = None if u is None else v.new_zeros(q.shape[:2])
    for p, i, j in _tiles(q, k):
        w = _weights(kernel, q[p, i], k[p, j], None if shift is None else shift[p, i])[1]
        _add_product(out[p, i], w, v[p, j])
        if sums is not None and u is not None:
            _add_product(sums[p, i].unsqueeze(-1), w, u[p, j].unsqueeze(-1))
    return out, sums


def _backward(
    kernel: ScoreKernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    shift: Tensor | None,
    g: Tensor,
    h: Tensor | None,
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Gradients to q, k, v, u of ``<g, W v> + <h, W u>``; the weights W are computed again."""
    dq, dk, dv, du = (
        None if x is None or not need else torch.zeros_like(x)
        for x, need in zip((q, k, v, u), needed, strict=True)
    )
    # the row sums are one more channel of values
    joined = u is not None and h is not None
    values = torch.cat([v, u.unsqueeze(-1)], -1) if joined and u is not None else v
    grads = torch.cat([g, h.unsqueeze(-1)], -1) if joined and h is not None else g
    for p, i, j in _tiles(q, k):
        scores, w = _weights(kernel, q[p, i], k[p, j], None if shift is None else shift[p, i])
        if dv is not None:
            _add_product(dv[p, j], w.mT, g[p, i])
        if du is not None and h is not None:
            _add_product(du[p, j].unsqueeze(-1), w.mT, h[p, i].unsqueeze(-1))
        if dq is None and dk is None:
            continue
        ds = kernel.chain(grads[p, i] @ values[p, j].mT, scores, w)
        if dq is not None:
            _add_product(dq[p, i], ds, k[p, j])
        if dk is not None:
            _add_product(dk[p, j], ds.mT, q[p, i])
    return [dq, dk, dv, du]


def _weights(kernel: ScoreKernel, q: Tensor, k: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores and weights of a tile; one tensor, holding the weights, where the kernel works in place."""
    scores = q @ k.mT
    if shift is not None:
        scores.sub_(shift.unsqueeze(-1)).clamp_(max=0)
    if kernel.f_ is not None and kernel.backward_ is not None:
        w = kernel.f_(scores)
        return w, w
    return scores, kernel.f(scores)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    if out.ndim == 2:
        out.addmm_(a, b)
    else:
        out.baddbmm_(a, b)


def _tiles(q: Tensor, k: Tensor) -> Iterator[tuple[int | slice, slice, slice]]:
    """Cuts of (P, n, m) whose scores fit the cache: several p at once where n m is small."""
    leads, n, m = q.shape[0], q.shape[1], k.shape[1]
    rows, columns = (TILE_ROWS, TILE_COLUMNS) if q.device.type == "cpu" else (TILE_GPU, TILE_GPU)
    if 0 < 2 * n * m <= rows * columns:
        together = rows * columns // (n * m)
        for p in range(0, leads, together):
            yield slice(p, p + together), slice(None), slice(None)
        return
    for p in range(leads):
        for i in range(0, n, rows):
            for j in range(0, m, columns):
                yield p, slice(i, i + rows), slice(j, j + columns)


# ---- packed sets --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """Tokens that take part: consecutive ones, or several sets side by side, padded to one length.

    Padding repeats the last token of its set, so that scores stay those of real pairs, and holds zeros
    where it would count (values, incoming gradients).
    """

    span: slice
    index: Tensor | None = None  # (G, L)
    valid: Tensor | None = None  # (G, L)

    def take(self, x: Any, zero: bool = False) -> Any:
        """``(P, n, ...)`` to ``(P, span, ...)`` or ``(P G, L, ...)``; None stays None."""
        if x is None or self.index is None or self.valid is None:
            return None if x is None else x[:, self.span]
        y = x[:, self.index]
        if zero:
            y.masked_fill_(~self.valid.view(*self.valid.shape, *[1] * (x.ndim - 2)), 0)
        return y.flatten(0, 1)

    def put(self, out: Tensor | None, y: Tensor | None) -> None:
        """The inverse of :meth:`take`, written into ``out``."""
        if out is None or y is None:
            return
        if self.index is None or self.valid is None:
            out[:, self.span] = y
        else:
            out[:, self.index[self.valid]] = y.view(out.shape[0], *self.valid.shape, *y.shape[2:])[
                :, self.valid
            ]


def _parts(
    n: int, m: int, bounds: tuple[list[int], list[int]] | None, device: torch.device
) -> Iterator[tuple[_Side, _Side]]:
    """Pairs of sides that cover all pairs inside sets: large sets alone, small ones grouped by size."""
    if bounds is None:
        yield _Side(slice(0, n)), _Side(slice(0, m))
        return
    groups: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for a, b, c, d in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False):
        if b == a or d == c:
            continue
        if 4 * (b - a) * (d - c) > TILE_ROWS * TILE_COLUMNS:
            yield _Side(slice(a, b)), _Side(slice(c, d))
        else:
            groups.setdefault((_size_class(b - a), _size_class(d - c)), []).append((a, b, c, d))
    for sets in groups.values():
        bound = torch.tensor(sets, device=device).unbind(1)
        yield _padded(*bound[:2]), _padded(*bound[2:])


def _size_class(size: int) -> int:
    """Sizes of one class differ by at most an eighth, or are equal below 16."""
    step = max(0, size.bit_length() - 4)
    return -(-size >> step) << step


def _padded(start: Tensor, stop: Tensor) -> _Side:
    slot = torch.arange(int((stop - start).max()), device=start.device)
    index = start[:, None] + slot
    last = stop[:, None] - 1
    return _Side(slice(0), torch.minimum(index, last), index <= last)


# ---- shapes ---------------------------------------------------------------------------------------


def _flatten(
    q: Tensor, k: Tensor, v: Tensor, column: Tensor | None, shift: Tensor | None
) -> tuple[torch.Size, list[Any]]:
    """Arguments with leading dimensions broadcast and merged to one, in the accumulation type."""
    matrices = [q, k, v]
    vectors = [x for x in (column, shift) if x is not None]
    lead = torch.broadcast_shapes(*(x.shape[:-2] for x in matrices), *(x.shape[:-1] for x in vectors))
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    dtype = torch.promote_types(dtype, torch.float32)

    def flat(x: Tensor | None, tail: int) -> Tensor | None:
        if x is None:
            return None
        own = x.shape[x.ndim - tail :]
        return x.to(dtype).expand(*lead, *own).reshape(lead.numel(), *own)

    return lead, [flat(q, 2), flat(k, 2), flat(v, 2), flat(column, 1), flat(shift, 1)]


def _unflatten(grad: Tensor | None, like: Tensor | None, lead: torch.Size) -> Tensor | None:
    if grad is None or like is None:
        return None
    return grad.view(*lead, *grad.shape[1:]).sum_to_size(like.shape).to(like.dtype)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ptr: Tensor | None,
    k_ptr: Tensor | None,
    shift: Tensor | None,
    column: Tensor | None,
) -> None:
    def shapes() -> str:
        return f"q has shape {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"

    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"pairwise_product: {shapes()}; expected (..., n, r), (..., m, r), (..., m, c).")
    if not (q.is_floating_point() and k.is_floating_point() and v.is_floating_point()):
        raise ValueError(
            f"pairwise_product: q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}; expected float types."
        )
    for name, x, tokens in (("shift", shift, q.shape[-2]), ("column", column, k.shape[-2])):
        if x is not None and (x.ndim < 1 or x.shape[-1] != tokens):
            raise ValueError(
                f"pairwise_product: {name} has shape {tuple(x.shape)}; expected (..., {tokens}), {shapes()}."
            )
    if (q_ptr is None) != (k_ptr is None):
        raise ValueError("pairwise_product: only one of q_ptr and k_ptr was given; pass both or neither.")
    if q_ptr is None or k_ptr is None:
        return
    if q_ptr.shape != k_ptr.shape:
        raise ValueError(
            f"pairwise_product: q_ptr bounds {q_ptr.numel() - 1} sets and k_ptr {k_ptr.numel() - 1}; expected the same."
        )
    for name, ptr, tokens in (("q_ptr", q_ptr, q.shape[-2]), ("k_ptr", k_ptr, k.shape[-2])):
        good = ptr.ndim == 1 and ptr.dtype == torch.int64 and ptr.numel() > 0
        if not good or int(ptr[0]) != 0 or int(ptr[-1]) != tokens or bool((ptr.diff() < 0).any()):
            raise ValueError(
                f"pairwise_product: {name} is {ptr.dtype} of shape {tuple(ptr.shape)}; "
                f"expected int64 bounds that rise from 0 to {tokens}."
            )
