r"""Terms of a field: what tokens take from each other, through the operators that the models train with.

A term gives ``a_i = sum_j P_ij V x_j``, attention before its output projection, where P is a kernel of the scores
``beta <Q x_i, K x_j>`` under a law on its mass. Nothing of size ``n x n`` is formed.

Shapes: ``x (..., n, d)``, Q and K ``(r, d)``, V ``(d, d)``, masses ``(..., n)``, beta a number or ``(...)``; ``P`` merged
leading dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import laws
from ..laws.base import Law
from ..mixers import mixer_operator, softmax_attention
from ..operators import Causal, LowRank, Operator, Pairwise, ScoreKernel
from ..operators.streaming import row_max
from ..tokens import Tokens

KERNELS = ("exp", "sigmoid", "linear", "hardmax")
CHUNK = 2**22  # scores formed at once by the hard maximum
TILE = 2**17  # scores that fit the cache
FEW = 2**16  # scores up to which their matrix is faster than the fused kernel
SMALL_MEAN = 1024  # tokens up to which the law mean is faster by its matrix than by one more key


class Term(Protocol):
    """What a field sums: values ``(..., n, d)`` of tokens ``(..., n, d)``, and the same for chosen systems of a batch."""

    def __call__(self, x: Tensor, tokens: Tokens | None = None) -> Tensor: ...

    def take(self, index: Tensor, lead: torch.Size) -> Term: ...


@dataclass(frozen=True, eq=False)
class Attention:
    r"""``a_i = sum_j P_ij V x_j`` with a kernel of ``beta <Q x_i, K x_j>``.

    ============ ====================================== =========================================================
    kernel       weight of a pair before the law         remarks
    ============ ====================================== =========================================================
    ``exp``      ``e^{beta <Qx, Ky>}``                   row: SA, softmax attention; mean: USA
    ``sigmoid``  ``1 / (1 + e^{-beta <Qx, Ky>})``
    ``linear``   ``1 + beta <Qx, Ky>``                   linear cost; signs are kept
    ``hardmax``  1 on ``argmax_j <Qx, Ky>``, else 0      the limit beta -> inf (of either sign); row only
    ============ ====================================== =========================================================

    Args:
        beta: inverse temperature of either sign, or one for each system of a batch.
        law: ``row`` (``P 1 = 1``), ``mean`` (``1/n``, with masses ``1/sum m``), ``none``, ``sym``, or a ``Law``.
        query, key: ``(r, d)``; None is the identity. Points are columns: scores are ``<Q x_i, K x_j>``.
        value: ``(d, d)``, or a number that multiplies the identity (-1 repels); None is the identity.
        kernel: see above, or a ``ScoreKernel``.
        causal: tokens see themselves and earlier ones. Under ``mean`` the divisor stays the total mass.
        scaled: USA (``exp`` with ``mean`` or ``none``) on the clock ``e^beta t``: the kernel ``e^{beta (<Qx, Ky> - 1)}``, which no
            beta > 0 overflows on the sphere.
        itself: whether the hard maximum may choose the token itself. On the sphere with Q = K it always would.

    Raises:
        ValueError: names that are not known, combinations without meaning, weights of the wrong shape; when called, an
            exponential kernel under ``mean`` with an e^beta that overflows. (Weights that Q, K or long tokens make overflow are
            not finite in the result, and in a run give the status ``NOT_FINITE``.)

    Cost: ``exp`` is ``scaled_dot_product_attention`` (the law mean by one more key, which returns the normaliser), time n^2 d,
    memory n d, with masses in its additive mask; causal under ``mean`` the law's own products. Up to 1024 tokens the law mean
    forms its weights tile by tile, which is faster there.

    >>> Attention(2.0)(torch.eye(2)).shape
    torch.Size([2, 2])
    """

    beta: float | Tensor = 1.0
    law: str | Law = field(default="row", kw_only=True)
    query: Tensor | None = field(default=None, kw_only=True)
    key: Tensor | None = field(default=None, kw_only=True)
    value: Tensor | float | None = field(default=None, kw_only=True)
    kernel: str | ScoreKernel = field(default="exp", kw_only=True)
    causal: bool = field(default=False, kw_only=True)
    scaled: bool = field(default=False, kw_only=True)
    itself: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.kernel, str) and self.kernel not in KERNELS:
            raise ValueError(
                f"Attention: kernel is {self.kernel!r}; expected one of {', '.join(KERNELS)}, or a ScoreKernel."
            )
        law = _law(self.law)
        if self.scaled and (self.kernel != "exp" or law.name not in ("mean", "none")):
            raise ValueError(
                f"Attention: scaled=True with kernel {self._kernel_name} and law {law.name}; the clock e^beta t is that of "
                "kernel='exp' under law='mean'. Leave scaled out."
            )
        if self.kernel == "hardmax" and law.name != "row":
            raise ValueError(
                f"Attention: kernel hardmax with law {law.name}; its rows share a mass of 1: expected law='row'."
            )
        if not self.itself and self.kernel != "hardmax":
            raise ValueError(
                f"Attention: itself=False with kernel {self._kernel_name}; it belongs to kernel='hardmax'."
            )
        if self.causal and law.uses_columns:
            raise ValueError(
                f"Attention: causal=True with law {law.name}, whose column sums see later tokens; expected row, mean or none."
            )
        b = torch.as_tensor(self.beta)
        if not bool(torch.isfinite(b).all()):
            raise ValueError(
                f"Attention: beta is {self.beta}; expected finite numbers (kernel='hardmax' is the limit)."
            )
        for name in ("query", "key", "value"):
            w = getattr(self, name)
            if isinstance(w, Tensor) and (w.ndim != 2 or (name == "value" and w.shape[0] != w.shape[1])):
                raise ValueError(
                    f"Attention: {name} has shape {tuple(w.shape)}; expected {'(d, d)' if name == 'value' else '(r, d)'}."
                )

    @property
    def _kernel_name(self) -> str:
        return self.kernel if isinstance(self.kernel, str) else self.kernel.name

    @property
    def law_name(self) -> str:
        """The name of the law."""
        return self.law if isinstance(self.law, str) else self.law.name

    def take(self, index: Tensor, lead: torch.Size) -> Attention:
        """The term of systems ``index`` of a batch whose merged leading dimensions are ``lead``."""
        if not isinstance(self.beta, Tensor) or self.beta.ndim == 0:
            return self
        return replace(self, beta=self.beta.expand(lead).reshape(-1)[index])

    def __call__(self, x: Tensor, tokens: Tokens | None = None) -> Tensor:
        """``(..., n, d)``: what every token takes; 0 for tokens of mass 0."""
        self._check(x)
        v = self.value * x if isinstance(self.value, (int, float)) else _turned(x, self.value)
        return self.carry(x, v, tokens)

    def carry(self, x: Tensor, v: Tensor, tokens: Tokens | None = None) -> Tensor:
        """``sum_j P_ij(x) v_j`` for any values ``(..., n, c)``."""
        if self.kernel == "exp" and self.law_name == "row":
            free = not self.causal and (tokens is None or tokens.mass is None)
            if free and x.numel() * x.shape[-2] <= FEW * x.shape[-1]:
                return self._scores(x).softmax(-1) @ v
            return _soft(self._queries(x), _turned(x, self.key), v, tokens, self.causal)
        if self.kernel == "exp" and self.law_name == "mean" and not self.causal:
            return self._mean_field(x, v, tokens)
        if self.kernel == "hardmax":
            return self._hard(x, v, tokens)
        if self.kernel == "exp" and self.law_name in ("mean", "none"):
            self.refuse_overflow(x)
        return self.operator(x, tokens) @ v

    def operator(self, x: Tensor, tokens: Tokens | None = None) -> Operator:
        """P itself, ``(..., n, n)``: an operator, formed only where asked to (``to_dense``)."""
        q, k = self._queries(x), _turned(x, self.key)
        if self.kernel == "hardmax":
            raise ValueError("Attention.operator: the hard maximum has no kernel operator; call the term.")
        kernel: Operator
        if self.kernel == "linear":
            kernel = LowRank(F.pad(q, (1, 0), value=1.0), F.pad(k, (1, 0), value=1.0))
        elif self.kernel == "exp" and self.scaled:
            one = torch.ones_like(q[..., :1])
            kernel = Pairwise(
                torch.cat([q, -self.inverse_temperature(x) * one], -1), torch.cat([k, one], -1), "exp"
            )
        else:
            kernel = Pairwise(q, k, self.kernel)
        if self.causal:
            kernel = kernel * Causal(x.shape[-2], dtype=x.dtype, device=x.device)
        law = _law(self.law)
        return law(kernel, sources=tokens, targets=tokens)

    # ---- parts ------------------------------------------------------------------------------------

    def _check(self, x: Tensor) -> None:
        if x.ndim < 2 or not x.is_floating_point():
            raise ValueError(
                f"Attention: x is {x.dtype} of shape {tuple(x.shape)}; expected floats (..., n, d), n tokens in R^d."
            )
        if self.query is None and self.key is None and self.value is None:
            return
        for name in ("query", "key", "value"):
            w = getattr(self, name)
            if isinstance(w, Tensor) and w.shape[-1] != x.shape[-1]:
                raise ValueError(
                    f"Attention: {name} has shape {tuple(w.shape)} and tokens have {x.shape[-1]} coordinates; expected "
                    f"(..., {x.shape[-1]})."
                )

    def inverse_temperature(self, x: Tensor) -> Tensor:
        """beta as ``(..., 1, 1)``, to multiply with x."""
        b = torch.as_tensor(self.beta, dtype=x.dtype, device=x.device)
        try:
            fits = torch.broadcast_shapes(b.shape, x.shape[:-2]) == x.shape[:-2]
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"Attention: beta has shape {tuple(b.shape)}; expected one number, or one for each of the systems "
                f"{tuple(x.shape[:-2])}."
            )
        return b.unsqueeze(-1).unsqueeze(-1)

    def _queries(self, x: Tensor) -> Tensor:
        if isinstance(self.beta, (int, float)):
            return self.beta * _turned(x, self.query)
        return self.inverse_temperature(x) * _turned(x, self.query)

    def _scores(self, x: Tensor) -> Tensor:
        """``beta <Q x_i, K x_j>``; of two-dimensional x by one call, which is what small systems wait for."""
        if x.ndim == 2 and isinstance(self.beta, (int, float)):
            q = x if self.query is None else _turned(x, self.query)
            k = x if self.key is None else _turned(x, self.key)
            return torch.addmm(_nothing(x.dtype, x.device), q, k.mT, beta=0, alpha=self.beta)
        return self._queries(x) @ _turned(x, self.key).mT

    def refuse_overflow(self, x: Tensor) -> None:
        """Raise where ``e^beta``, which no shift divides out, has no place in the type of x."""
        if self.scaled:
            return
        top = abs(self.beta) if isinstance(self.beta, (int, float)) else float(self.beta.detach().abs().max())
        if top < 10:  # no type overflows there
            return
        limit = math.log(torch.finfo(x.dtype).max)
        if top > limit - 1:
            raise ValueError(
                f"Attention: beta = {top:g} under law {self.law_name} in {x.dtype}: e^beta overflows (the limit is beta = "
                f"{limit - 1:.0f}). Use scaled=True, the clock e^beta t."
            )

    def _mean_field(self, x: Tensor, v: Tensor, tokens: Tokens | None) -> Tensor:
        """``sum_j m_j e^{s_ij} v_j / sum_j m_j``: few tokens by the formula itself, many streamed."""
        self.refuse_overflow(x)
        n = x.shape[-2]
        if (tokens is None or tokens.mass is None) and x.numel() * n <= TILE * x.shape[-1]:
            s = self._scores(x)
            return (s - self.inverse_temperature(x) if self.scaled else s).exp_() @ v / n
        q, k = self._queries(x), _turned(x, self.key)
        mass = None if tokens is None or tokens.mass is None else tokens.mass.to(x.dtype)
        less: Tensor | float = 0.0
        if self.scaled:
            less = self.beta if isinstance(self.beta, (int, float)) else self.inverse_temperature(x)
        if n <= SMALL_MEAN:
            out = _exponentials(q, k, v, less, mass)
        else:
            sink = _sink(q.detach(), k.detach(), mass)
            out = _by_sink(q, k, v, sink, mass) * torch.exp(sink - less)
        if mass is None:
            return out / n
        out = out / mass.sum(-1)[..., None, None].clamp(min=torch.finfo(x.dtype).tiny)
        return torch.where(mass.unsqueeze(-1) > 0, out, 0.0)

    def _hard(self, x: Tensor, v: Tensor, tokens: Tokens | None) -> Tensor:
        q, k = self.inverse_temperature(x).sign() * _turned(x, self.query), _turned(x, self.key)
        n, lead = x.shape[-2], x.shape[:-2]
        m = x.new_ones(n) if tokens is None or tokens.mass is None else tokens.mass.to(x.dtype)
        column = torch.arange(n, device=x.device)
        out = []
        for rows in column.split(max(1, CHUNK // max(n * lead.numel(), 1))):
            s = (q[..., rows, :] @ k.mT).masked_fill(m.unsqueeze(-2) <= 0, -torch.inf)
            if self.causal:
                s = s.masked_fill(column > rows[:, None], -torch.inf)
            if not self.itself:
                s = s.masked_fill(column == rows[:, None], -torch.inf)
            top = s.amax(-1, keepdim=True)
            ties = 8 * torch.finfo(x.dtype).eps * (1 + top.abs())
            p = ((s >= top - ties) & torch.isfinite(s)) * m.unsqueeze(-2)
            total = p.sum(-1, keepdim=True)
            out.append(p @ v / torch.where(total > 0, total, 1.0))
        a = torch.cat(out, -2)
        return a if tokens is None or tokens.mass is None else a * (m > 0).unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class Mixed:
    """A mixer of the models as a term: ``flow``, ``diffusion``, ``diffusion-sigmoid``, ``linear``, ``mean``.

    Args:
        mixer: its name in ``osmose.mixers``.
        query, key, value: as for :class:`Attention`.
        causal: target i sees sources j <= i.
        options: of the mixer's function.
    """

    mixer: str
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | float | None = None
    causal: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def take(self, index: Tensor, lead: torch.Size) -> Mixed:
        return self

    def operator(self, x: Tensor, tokens: Tokens | None = None) -> Operator:
        """P, one head, ``(..., 1, n, n)``."""
        q, k = (_turned(x, w).unsqueeze(-3) for w in (self.query, self.key))
        if tokens is not None and tokens.mass is not None and tokens.mass.ndim > 1:
            tokens = tokens.heads()
        return mixer_operator(
            self.mixer, q, k, targets=tokens, sources=tokens, causal=self.causal, **self.options
        )

    def __call__(self, x: Tensor, tokens: Tokens | None = None) -> Tensor:
        v = self.value * x if isinstance(self.value, (int, float)) else _turned(x, self.value)
        return (self.operator(x, tokens) @ v.unsqueeze(-3)).squeeze(-3)


@cache
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What ``addmm`` adds 0 times."""
    return torch.zeros((), dtype=dtype, device=device)


def _turned(x: Tensor, weight: Tensor | None) -> Tensor:
    """``W x_i`` for points in rows."""
    return x if weight is None else x @ weight.to(x.dtype).mT


def _soft(
    q: Tensor, k: Tensor, v: Tensor, tokens: Tokens | None, causal: bool, targets: Tokens | None = None
) -> Tensor:
    """Softmax of plain scores through torch's fused kernel, which it takes for four dimensions alone."""
    lead, n = q.shape[:-2], q.shape[-2]
    targets = tokens if targets is None else targets

    def four(y: Tensor) -> Tensor:
        return y.reshape(-1, 1, *y.shape[-2:])

    def masses(t: Tokens | None) -> Tokens | None:
        if t is None or t.mass is None or t.mass.ndim == 1:
            return t
        return Tokens(t.n, t.mass.expand(*lead, t.n).reshape(-1, 1, t.n))

    if tokens is None or tokens.mass is None:
        # the same kernel, without what a call for tokens with mass costs small systems
        out = F.scaled_dot_product_attention(four(q), four(k), four(v), is_causal=causal, scale=1.0)
    else:
        out = softmax_attention(
            four(q * math.sqrt(q.shape[-1])),
            four(k),
            four(v),
            targets=masses(targets),
            sources=masses(tokens),
            causal=causal,
        )
    return out.reshape(*lead, n, v.shape[-1])


def _exponentials(q: Tensor, k: Tensor, v: Tensor, less: Tensor | float, mass: Tensor | None) -> Tensor:
    """``sum_j m_j e^{s_ij - less} v_j`` by their matrices, a tile that fits the cache at a time."""
    lead, n = q.shape[:-2], q.shape[-2]
    q, k, v = (y.reshape(-1, *y.shape[-2:]) for y in (q, k, v))
    if isinstance(less, Tensor):
        less = less.expand(*lead, 1, 1).reshape(-1, 1, 1)
    if mass is not None:
        mass = mass.expand(*lead, n).reshape(-1, 1, n)
    out, few, size = [], max(1, TILE // n), max(1, TILE // (n * n))
    for i in range(0, len(q), size):
        at = slice(i, i + size)
        part, m = less[at] if isinstance(less, Tensor) else less, None if mass is None else mass[at]
        out.append(torch.cat([_tile(rows, k[at], v[at], part, m) for rows in q[at].split(few, -2)], -2))
    return torch.cat(out).reshape(*lead, n, v.shape[-1])


def _tile(q: Tensor, k: Tensor, v: Tensor, less: Tensor | float, mass: Tensor | None) -> Tensor:
    s = q @ k.mT
    if isinstance(less, Tensor) or less:
        s = s - less
    if mass is None:
        return s.exp() @ v
    return (s.masked_fill(mass <= 0, -torch.inf).exp() * mass) @ v


def _sink(q: Tensor, k: Tensor, mass: Tensor | None) -> Tensor:
    """Scores ``(..., n, 1)`` not below those of a row, and not so far above that the weights beside them vanish."""
    length = k.norm(dim=-1)
    if mass is not None:
        length = torch.where(mass > 0, length, 0.0)
    bound = q.norm(dim=-1, keepdim=True) * length.amax(-1)[..., None, None]
    if 4 * float(bound.max()) < math.log(torch.finfo(q.dtype).max):
        return bound
    # scores are anywhere in [-bound, bound], and e^{-2 bound} may be below the smallest float
    top = row_max(q, k, present=None if mass is None else mass > 0).unsqueeze(-1)
    return torch.where(torch.isfinite(top), top, 0.0)


def _by_sink(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, mass: Tensor | None) -> Tensor:
    """``sum_j m_j e^{s_ij - sink_i} v_j`` from softmax, by one more source of score ``sink_i`` that returns its own weight.

    That weight is ``w = e^{sink} / (Z + e^{sink})``, and the other values come out times ``w e^{-sink}``.
    """
    lead = torch.broadcast_shapes(q.shape[:-2], sink.shape[:-2])
    q = torch.cat([q, sink.expand(*lead, -1, -1)], -1)
    k, values = F.pad(k, (0, 1, 0, 1)), F.pad(v, (0, 1, 0, 1))
    k[..., -1, -1] = values[..., -1, -1] = 1.0
    tokens = None if mass is None else Tokens(k.shape[-2], F.pad(mass, (0, 1), value=1.0))
    out = _soft(q, k, values, tokens, False, targets=Tokens(q.shape[-2]))
    return out[..., :-1] / out[..., -1:]


def _law(law: str | Law) -> Law:
    if isinstance(law, Law):
        return law
    if law not in laws.LAWS:
        raise ValueError(f"Attention: law is {law!r}; expected one of {', '.join(laws.LAWS)}, or a Law.")
    return laws.LAWS[law]
