"""Positions in the score: ``A_h = law(C_h * exp(sum_d b_hd S_d))``, a bias of every offset before the law.

Softmax adds the bias to its scores and forms it for all pairs, memory n m. The linear mixers take ``T = exp(b)`` as the
structure of their kernel: where the bias is constant beyond a reach R that is a low-rank operator, with other constants
for earlier and later sources two, and a band, in time O(n (64 + 2R) (r + d)). A bias that never becomes constant
(ALiBi) costs n m there, says so and is refused past :func:`~osmose.operators.dense_limit`.

Shapes: as in base.py; ``K`` offsets, ``r`` rank of a kernel, ``S`` packed sets, ``L`` tokens of the longest.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...mixers import mixer_of
from ...mixers.operators import mixer_operator
from ...operators import CausalLowRank, Dense, LowRank, Operator, Toeplitz
from ...operators.base import within_limit
from ...operators.local import CHUNK
from ...operators.toeplitz import dense_toeplitz
from ...tokens import Tokens
from .base import Position

FORMED = 2**20  # entries of a head up to which a kernel without a linear form is formed and kept


class Score(Position):
    """A bias ``b_h(d)`` of the offset d = source - target, added to scores or multiplied into kernels as ``exp(b)``.

    Attributes:
        two_sided: whether the constants beyond the reach may differ from 0.
    """

    two_sided: ClassVar[bool] = True

    @abstractmethod
    def bias_at(self, offsets: Tensor, causal: bool) -> Tensor:
        """The bias of offsets ``(K,)`` int64, ``(H, K)``. Causal flow asks for offsets > 0 too: for its outgoing sums."""

    @property
    @abstractmethod
    def reach(self) -> int | None:
        """The bias is constant for d < -reach and for d > reach; None where it never is."""

    def carry(self, mixer: Any, q: Tensor, k: Tensor, v: Tensor, **call: Any) -> tuple[Tensor, Tensor | None]:
        n, m, targets, sources = q.shape[-2], k.shape[-2], call["targets"], call["sources"]
        pairwise = mixer_of(mixer.mixer, "MultiheadMixer").pairwise
        lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2]).numel()
        linear = not pairwise and self._is_linear(mixer.mixer, lead, n, m, targets, sources, call["causal"])
        if targets is not None and targets.packed and not linear:
            return _set_by_set(partial(self.carry, mixer), q, k, v, **call)
        if pairwise:
            with torch.autocast(q.device.type, enabled=False):
                pairs = self._pairs(n, m, q.device, call["causal"])
            given = call.pop("bias")
            return mixer.mix(q, k, v, bias=pairs if given is None else given + pairs, **call)
        mixer.refuse_bias(call["bias"])
        structure = self._linear_structure if linear else self._formed_structure
        with torch.autocast(q.device.type, enabled=False):
            op = mixer_operator(
                mixer.mixer, q, k, targets=targets, sources=sources, causal=call["causal"],
                structure=partial(structure, causal=call["causal"], mask=call["causal"] and mixer.mixer != "flow"),
                **mixer.options,
            )  # fmt: skip
        kept = mixer.kept_sources(v)
        out = (op @ (v if kept is None else v * kept)).to(v.dtype)
        if not call["need_weights"]:
            return out, None
        weights = op.to_dense()
        return out, weights if kept is None else weights * kept.mT

    # ---- structures of a kernel -----------------------------------------------------------------------

    def _is_linear(
        self,
        mixer: str,
        lead: int,
        n: int,
        m: int,
        targets: Tokens | None,
        sources: Tokens | None,
        causal: bool,
    ) -> bool:
        """Whether the kernel is low rank, the bias ends, and windows cost less than all pairs, or all are too many."""
        reach = self.reach
        if reach is None or mixer == "diffusion-sigmoid" or (causal and mixer == "flow"):
            return False
        if self.two_sided or causal:  # the order of the tokens on both sides is then one
            same = targets is sources or targets is None or sources is None or targets.batch is sources.batch
            if n != m or not same:
                return False
        longest, formed = max(n, m), lead * n * m
        if targets is not None and sources is not None and targets.packed:
            longest = int(torch.maximum(targets.sizes, sources.sizes).max()) if targets.num_sets else 0
            formed = lead * targets.num_sets * longest**2
        return longest > 2 * (CHUNK + 2 * reach) or not within_limit(formed)

    def _linear_structure(self, kernel: Operator, *, causal: bool, mask: bool) -> Operator:
        """``C * exp(b)`` as low rank, causal low rank and a band; with ``mask`` without later sources."""
        assert isinstance(kernel, LowRank)
        assert self.reach is not None
        targets, sources, reach = kernel.targets, kernel.sources, self.reach
        packed = targets is not None and targets.packed
        sets: dict[str, Any] = {"targets": targets, "sources": sources} if packed else {}
        order = {"tokens": targets} if packed else {}
        offsets = torch.arange(-reach - 1, reach + 2, device=kernel.device)
        weight = self.bias_at(offsets, causal).to(kernel.left.dtype).exp()
        earlier, inside, later = weight[:, :1], weight[:, 1:-1], weight[:, -1:]
        n, m = kernel.shape[-2:]

        def band(weight: Tensor) -> Operator:
            return kernel * Toeplitz(weight, range(-reach, weight.shape[-1] - reach), n, m, **sets)

        if mask:
            past = CausalLowRank(kernel.left * earlier.unsqueeze(-1), kernel.right, **order)
            return past + band(inside[:, : reach + 1] - earlier)
        if not self.two_sided:
            return kernel + band(inside - later)
        every = LowRank(kernel.left * later.unsqueeze(-1), kernel.right, **sets)
        past = CausalLowRank(kernel.left * (earlier - later).unsqueeze(-1), kernel.right, **order)
        return every + past + band(inside - torch.where(offsets[1:-1] <= 0, earlier, later))

    def _formed_structure(self, kernel: Operator, *, causal: bool, mask: bool) -> Operator:
        """``C * exp(b)`` for all pairs: formed where it is small or needed twice over, else streamed."""
        n, m = kernel.shape[-2:]
        offsets = range(1 - n, 1 if mask else m) if n and m else range(1)
        bias = self.bias_at(torch.arange(offsets.start, offsets.stop, device=kernel.device), causal)
        pattern = Toeplitz(bias.to(torch.promote_types(kernel.dtype, torch.float32)).exp(), offsets, n, m)
        if n * m > FORMED and not (causal and not mask):
            return kernel * pattern
        return Dense(kernel.to_dense() * pattern.to_dense())

    def _pairs(self, n: int, m: int, device: torch.device, causal: bool) -> Tensor:
        """The bias of all pairs, ``(H, n, m)``."""
        offsets = (
            torch.arange(1 - n, m, device=device)
            if n and m
            else torch.zeros(1, dtype=torch.int64, device=device)
        )
        return dense_toeplitz(self.bias_at(offsets, causal), int(1 - n), n, m)


def _set_by_set(
    carry: Callable[..., tuple[Tensor, Tensor | None]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    targets: Tokens,
    sources: Tokens,
    **call: Any,
) -> tuple[Tensor, Tensor | None]:
    """A call on packed sets as one on a padded batch of them. Memory S L instead of n, time S L^2 where pairs are formed."""
    if call["bias"] is not None:
        raise ValueError("MultiheadMixer: a bias of pairs goes with padded tokens; these are packed.")
    heads = q.ndim - 2
    q, k, v = (_pad(x, t) for x, t in ((q, targets), (k, sources), (v, sources)))
    own = targets is sources
    targets_, sources_ = (_padded(t, heads) for t in (targets, sources))
    out, weights = carry(q, k, v, targets=sources_ if own else targets_, sources=sources_, **call)
    batch = _batch(targets)
    out = out.movedim(-2, 1)[batch, targets.positions].movedim(0, -2)
    if weights is None:
        return out, None
    longest = weights.shape[-1]
    rows = weights.movedim(-2, 1)[batch, targets.positions]  # (n, ..., H, L)
    columns = rows.movedim(-1, 0).index_select(0, sources.positions.clamp(max=max(longest - 1, 0)))
    same = targets.same_set(sources, v.device)
    assert same is not None
    return out, torch.where(same, columns.movedim((1, 0), (-2, -1)), 0.0)


def _batch(tokens: Tokens) -> Tensor:
    assert tokens.batch is not None
    return tokens.batch


def _longest(tokens: Tokens) -> int:
    return int(tokens.sizes.max()) if tokens.num_sets else 0


def _pad(x: Tensor, tokens: Tokens) -> Tensor:
    """Packed ``(..., n, c)`` to ``(S, ..., L, c)``, zeros at padding."""
    x = x.movedim(-2, 0)
    out = x.new_zeros(tokens.num_sets, _longest(tokens), *x.shape[1:])
    return out.index_put((_batch(tokens), tokens.positions), x).movedim(1, -2)


def _padded(tokens: Tokens, dims: int) -> Tokens:
    """The tokens of the padded batch, their masses with ``dims`` dimensions between the sets and the tokens."""
    length = _longest(tokens)
    mass = torch.ones(tokens.n, device=_batch(tokens).device) if tokens.mass is None else tokens.mass
    padded = mass.new_zeros(tokens.num_sets, length).index_put((_batch(tokens), tokens.positions), mass)
    return Tokens(length, padded.view(tokens.num_sets, *(1,) * dims, length))


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Columns of a table ``(H, K)``."""
    return F.embedding(index, table.mT).mT


def slopes(num_heads: int) -> Tensor:
    """ALiBi's slopes: ``2^(-8 h / H)`` for a power of two; else those of the power below, and every other of the next."""
    power = 2 ** math.floor(math.log2(num_heads))
    first = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    more = [2 ** (-4 * (h + 1) / power) for h in range(0, 2 * (num_heads - power), 2)]
    return torch.tensor(first + more)
