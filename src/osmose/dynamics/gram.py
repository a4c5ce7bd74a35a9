r"""Inner products as the state: a motion that knows nothing of the dimension.

For ``G_ij = <x_i, x_j>`` and attention P computed from G,

.. math:: G' = M + M^T, \quad M_{ij} = H_{ij} - r_i G_{ij}, \quad H = P G, \quad r_i = \sum_k P_{ik} G_{ik},

and a layer ``normalise(x + h A)`` is ``K = (I + h P) G (I + h P)^T``, ``G <- D^{-1/2} K D^{-1/2}``, ``D = diag K``, exactly. Cost
``n^3`` in place of ``n^2 d``. Layers are faster from about ``d = 2 n`` on, 5 times at 16 n; RK4, whose steps on the sphere pay
for normal coordinates, from ``d = n`` on, twice at 2 n, three times at 4 n (one thread, float64, n = 4 to 256).

Shapes: states ``G (..., n, n)``, masses ``(..., n)``.

Source: derived here from 2312.10794v5, section 2; products of the particles themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tokens import Tokens
from .fields import Field
from .spaces import Space, Sphere
from .terms import Attention


class Gram(Space):
    """Inner products of unit vectors: ``simulate(field, gram_matrix(x), times, space=Gram())``.

    Fields are sums of :class:`Attention` with Q = K = I, V a multiple of the identity, kernel exp, sigmoid or linear, law
    row, mean or none, with masses and causal order; no drift. Steppers are exact images of those on the sphere for
    :class:`Layer` and :class:`Euler`; others follow the equation above. ``1 - G_ij`` is absolute: merged tokens keep
    1e-16, not relative precision.
    """

    def admit(self, field: Field) -> None:
        for piece in [field.at(t) for t in field.breaks] or [field]:
            _heads(piece)

    def check(self, x: Tensor, mass: Tensor | None = None) -> Tensor:
        """Refuses what is no matrix of inner products of unit vectors."""
        x = super().check(x)
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(
                f"Gram: the state has shape {tuple(x.shape)}; expected (..., n, n), e.g. gram_matrix(x)."
            )
        tight = 1e4 * torch.finfo(x.dtype).eps
        if x.numel():
            off = float((x - x.mT).abs().max())
            diagonal = (x.diagonal(dim1=-2, dim2=-1) - 1).abs()
            one = float((diagonal if mass is None else diagonal * (mass > 0)).max())
            low = float(torch.linalg.eigvalsh(x).min())
            if off > tight or one > tight or low < -tight * x.shape[-1]:
                raise ValueError(
                    f"Gram: the state is no matrix of inner products of unit vectors: asymmetry {off:.2g}, diagonal off 1 by "
                    f"{one:.2g}, least eigenvalue {low:.2g}. Build it with gram_matrix(x)."
                )
        return x

    def notes(self, x: Tensor) -> tuple[str, ...]:
        return Sphere().notes(self.points(x))

    def size(self, x: Tensor) -> float:
        return 1.0

    def velocity(self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor) -> Tensor:
        h = attention_of_gram(field, x, tokens, t) @ x
        m = h - h.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) * x  # r_i = H_ii, as G is symmetric
        return m + m.mT

    def layer(
        self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor, h: float | Tensor
    ) -> Tensor:
        return _stepped(x, attention_of_gram(field, x, tokens, t), h)

    def euler(
        self, field: Field, x: Tensor, tokens: Tokens | None, t: float | Tensor, h: float | Tensor
    ) -> Tensor:
        p = attention_of_gram(field, x, tokens, t)
        return _stepped(x, p - torch.diag_embed((p * x).sum(-1)), h)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return _correlations(x + u)

    def retract(self, x: Tensor, a: Tensor) -> Tensor:
        return _correlations(x + a)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().amax(-1)

    def points(self, x: Tensor) -> Tensor:
        """Some unit vectors of R^n with these inner products: the factor of Cholesky, pivoted where tokens have met."""
        factor, singular = torch.linalg.cholesky_ex(x)
        some = singular.nonzero(as_tuple=True)
        return factor.index_put(some, _pivoted_cholesky(x[some])) if len(some[0]) else factor

    def seen(
        self, field: Field, x: Tensor, v: Tensor | None, tokens: Tokens | None, t: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        points = self.points(x)
        if v is None:
            return points, torch.zeros_like(points)
        return points, Sphere().tangent(points, attention_of_gram(field, x, tokens, t) @ points)


def gram_matrix(x: Tensor) -> Tensor:
    """Inner products ``(..., n, n)`` of unit vectors ``(..., n, d)``, with ones on the diagonal."""
    return _correlations(x @ x.mT)


def attention_of_gram(
    field: Field, g: Tensor, tokens: Tokens | None = None, t: float | Tensor = 0.0
) -> Tensor:
    """``sum_h c_h P^h``, dense ``(..., n, n)``, of a field whose heads have ``V_h = c_h I``: ``A = P X``.

    Raises:
        ValueError: a field that does not see its tokens through inner products alone.
    """
    field = field.at(float(t.flatten()[0]) if isinstance(t, Tensor) else t)
    parts = [_attention(term, g, tokens) for term in _heads(field)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _heads(field: Field) -> list[Attention]:
    """The terms of a field that needs nothing but inner products; ValueError for any other."""
    if field.drift is not None or not field.terms:
        raise ValueError(
            "Gram: the field has a drift; expected a sum of Attention terms with Q = K = I, V = c I."
        )
    heads = []
    for term in field.terms:
        usable = isinstance(term, Attention) and term.query is None and term.key is None
        if not isinstance(term, Attention) or not usable or isinstance(term.value, Tensor):
            raise ValueError(
                f"Gram: {term!r} sees more than inner products; expected Attention with Q = K = I and V = c I."
            )
        if term.kernel not in ("exp", "sigmoid", "linear") or term.law_name not in ("row", "mean", "none"):
            raise ValueError(
                f"Gram: kernel {term.kernel!r} under law {term.law_name}; expected exp, sigmoid or linear under row, mean or "
                "none."
            )
        heads.append(term)
    return heads


def _attention(term: Attention, g: Tensor, tokens: Tokens | None) -> Tensor:
    beta = term.inverse_temperature(g)
    mass = None if tokens is None or tokens.mass is None else tokens.mass.to(g.dtype).unsqueeze(-2)
    if term.kernel == "exp" and term.law_name == "row" and mass is None and not term.causal:
        p = (beta * g).softmax(-1)
    else:
        p = _weights(term, g, beta)
        if mass is not None:
            p = p * mass
        if term.causal:
            p = p.tril()
        if term.law_name == "row":
            total = p.sum(-1, keepdim=True)
            p = p / torch.where(total != 0, total, 1.0)
        elif term.law_name == "mean":
            p = p / (g.shape[-1] if mass is None else mass.sum(-1, keepdim=True))
        if mass is not None:
            p = p * (mass.mT > 0)
    return p if term.value is None else term.value * p


def _weights(term: Attention, g: Tensor, beta: Tensor) -> Tensor:
    if term.kernel == "sigmoid":
        return torch.sigmoid(beta * g)
    if term.kernel == "linear":
        return 1 + beta * g
    if term.law_name == "row":  # up to the row's scale: exponents stay below |beta|
        return torch.exp(beta * g - beta.abs())
    if term.scaled:
        return torch.exp(beta * (g - 1))
    term.refuse_overflow(g)
    return torch.exp(beta * g)


def _stepped(g: Tensor, p: Tensor, h: float | Tensor) -> Tensor:
    """``(I + hP) G (I + hP)^T`` scaled to ones on the diagonal."""
    moved = h * p
    half = moved @ g
    return _correlations(g + half + half.mT + half @ moved.mT)


def _pivoted_cholesky(g: Tensor) -> Tensor:
    """``L`` with ``L L^T = G`` for ``G (P, n, n)`` of any rank, tokens taken in the order of what is left of them."""
    n = g.shape[-1]
    left = g.diagonal(dim1=-2, dim2=-1).clone()
    floor = n * torch.finfo(g.dtype).eps
    columns = torch.zeros_like(g)  # column k of the factor is row k here
    for k in range(n):
        most, i = left.max(-1)
        done = columns[:, :k]
        column = g.gather(-2, i[:, None, None].expand(-1, 1, n))
        column = column - done.gather(-1, i[:, None, None].expand(-1, k, 1)).mT @ done
        columns[:, k] = column.squeeze(-2) * torch.where(most > floor, most, torch.inf).rsqrt().unsqueeze(-1)
        left = left - columns[:, k].square()
    return columns.mT


def _correlations(k: Tensor) -> Tensor:
    scale = k.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(k.dtype).tiny).rsqrt()
    k = (k + k.mT) * (0.5 * scale.unsqueeze(-1)) * scale.unsqueeze(-2)
    return k
