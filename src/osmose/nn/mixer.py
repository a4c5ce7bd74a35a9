"""MultiheadMixer: any mixer behind the call of ``torch.nn.MultiheadAttention``.

Shapes: B batch, n targets, m sources, H heads, E = H d embedding channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers import mixer_of
from ..tokens import Tokens, check_pair
from .masks import check_inputs, key_tokens, order_of_bias, pair_bias, require_causal, require_open
from .position import Position, PositionSettings, position_of


class MultiheadMixer(nn.Module):
    """``out = W_o [A_1 V_1, ..., A_H V_H]``, where the mixer makes ``A_h`` of queries and keys.

    The call, masks and parameter names are those of ``torch.nn.MultiheadAttention``, whose state dict it loads; with
    ``mixer="softmax"`` outputs, weights and gradients are the same too.

    Args:
        embed_dim: E, a multiple of ``num_heads``.
        num_heads: H.
        dropout: probability, in training, that a weight of A becomes 0. Softmax draws for every pair. The others never
            form the pairs and draw for every source and head: what a single target receives has the same
            distribution, but targets share the draw.
        bias: of the projections.
        add_bias_kv: one more source with a learned key and value.
        add_zero_attn: one more source with key and value 0 (before the mixer's feature map).
        kdim, vdim: channels of key and value; None means E.
        batch_first: ``(B, n, E)`` instead of ``(n, B, E)``.
        mixer: a name of ``osmose.mixers.MIXERS``: ``flow``, ``softmax``, ``diffusion`` (DIFFormer-s),
            ``diffusion-sigmoid`` (DIFFormer-a), ``linear`` (elu + 1), ``mean`` (1/m).
        position: where tokens stand: a name of ``osmose.nn.POSITIONS`` or settings of one, such as ``Shift(radius=8)``;
            None means that the order of tokens is not seen.
        options: of that mixer's function, such as ``preset`` of ``flow`` or ``normalization`` of ``diffusion``.

    Raises:
        ValueError: sizes that do not fit, an unknown mixer or position, an option that it does not have or cannot take.

    Cost: the mixer's and the position's; see there. The projections cost ``n E^2``.
    """

    # torch's encoder layer has a fused path for evaluation that takes the weights and does softmax attention without
    # calling this module; it asks for this attribute and leaves that path where it is False.
    _qkv_same_embed_dim = False

    in_proj_weight: nn.Parameter | None
    q_proj_weight: nn.Parameter | None
    k_proj_weight: nn.Parameter | None
    v_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None
    position: Position | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mixer: str = "flow",
        position: str | PositionSettings | None = None,
        **options: Any,
    ):
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"MultiheadMixer: embed_dim is {embed_dim} and num_heads {num_heads}; expected positive numbers, "
                "embed_dim a multiple of num_heads."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"MultiheadMixer: dropout is {dropout}; expected a probability in [0, 1).")
        mixer_of(mixer, "MultiheadMixer").check(f"MultiheadMixer: mixer {mixer!r}", **options)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim, self.vdim = embed_dim if kdim is None else kdim, embed_dim if vdim is None else vdim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        self.mixer, self.options = mixer, options
        joint = self.kdim == self.vdim == embed_dim
        shapes: dict[str, tuple[int, ...] | None] = {
            "in_proj_weight": (3 * embed_dim, embed_dim) if joint else None,
            "q_proj_weight": None if joint else (embed_dim, embed_dim),
            "k_proj_weight": None if joint else (embed_dim, self.kdim),
            "v_proj_weight": None if joint else (embed_dim, self.vdim),
            "in_proj_bias": (3 * embed_dim,) if bias else None,
            "bias_k": (1, 1, embed_dim) if add_bias_kv else None,
            "bias_v": (1, 1, embed_dim) if add_bias_kv else None,
        }
        for name, shape in shapes.items():
            value = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, value)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self._reset_parameters()
        self.position = None
        if position is not None:
            self.set_position(position)

    def set_position(self, position: str | PositionSettings) -> None:
        """Give it a position encoding with new parameters, of the type and on the device of its own.

        Raises:
            ValueError: an unknown name, or one that does not fit the mixer.
        """
        settings = position_of(position, "MultiheadMixer")
        settings.check(self.mixer, kdim=self.kdim, vdim=self.vdim, embed_dim=self.embed_dim)
        weight = self.out_proj.weight
        made = settings.build(self.embed_dim, self.num_heads, device=weight.device, dtype=weight.dtype)
        if made.placed_sources and (self.bias_k is not None or self.add_zero_attn):
            raise ValueError(
                f"MultiheadMixer: position {settings.name!r} with add_bias_kv or add_zero_attn; the added source stands nowhere. "
                "Build the module without them, or take learned or sinusoidal."
            )
        self.position = made

    def _reset_parameters(self) -> None:
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                nn.init.xavier_normal_(extra)

    # ---- the call of nn.MultiheadAttention ----------------------------------------------------------

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What targets receive, and the matrix that carried it.

        Args:
            query: ``(n, B, E)``, with ``batch_first`` ``(B, n, E)``, or unbatched ``(n, E)``.
            key, value: ``(m, B, kdim)`` and ``(m, B, vdim)``, likewise.
            key_padding_mask: ``(B, m)`` or ``(m,)``; bool with True = ignore, or an additive float mask, which is the
                log of a mass and exact for every mixer. Where ``query is key`` it is self-attention: the linear mixers
                then leave padding out on both sides, and its rows are those of a target that receives 0. Where it is
                not, all targets count; :meth:`attend` takes the masses of both sides.
            need_weights: also return the matrix. It costs ``n m`` memory; leave it out for speed.
            attn_mask: ``(n, m)`` or ``(B H, n, m)``, bool with True = hidden, or added to the scores. Any for
                softmax. The other mixers take the causal mask, 2-D, which they check value by value.
            average_attn_weights: the mean of the heads' matrices instead of all.
            is_causal: target i receives from sources j <= i. For softmax an ``attn_mask``, if given, decides alone.

        Returns:
            ``(n, B, E)``, ``(B, n, E)`` or ``(n, E)``; and None or ``(B, n, m)``, not averaged ``(B, H, n, m)``,
            unbatched without B. A target with no source left receives 0 where torch gives NaN.

        Raises:
            ValueError: shapes that do not fit, a pair mask that this mixer cannot honour, causal order with different
                lengths or with ``add_bias_kv`` or ``add_zero_attn``.
        """
        own = query is key
        if query.is_nested:
            if key_padding_mask is not None or attn_mask is not None or need_weights:
                raise ValueError(
                    "MultiheadMixer: a nested query with a mask or need_weights=True; a nested tensor has no padding and no "
                    "one matrix. Leave the masks out and pass need_weights=False, or pad."
                )
            return self._nested(query, key, value, is_causal), None
        check_inputs(query, key, value, (self.embed_dim, self.kdim, self.vdim), self.batch_first)
        turned = query.ndim == 3 and not self.batch_first
        if turned:
            same = value is key
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
            key, value = query if own else key, (query if own else key) if same else value
        lead, n, m = query.shape[:-2], query.shape[-2], key.shape[-2]
        sources = key_tokens(key_padding_mask, lead, m)
        pairwise, bias = mixer_of(self.mixer, "MultiheadMixer").pairwise, None
        if pairwise:
            bias = pair_bias(attn_mask, query, lead, self.num_heads, n, m)
            if self.position is not None:
                bias, is_causal = order_of_bias(bias, is_causal)
            is_causal = is_causal and bias is None
        elif attn_mask is not None:
            require_causal(attn_mask, self.mixer, n, m)
            is_causal = True
        # torch computes the rows of padded queries as well; mixers in which targets count must leave them out
        targets = sources if (own or is_causal) and not pairwise else None
        out, weights = self.attend(
            query, key, value, targets=targets, sources=sources, causal=is_causal, bias=bias,
            need_weights=need_weights,
        )  # fmt: skip
        if weights is not None and average_attn_weights:
            weights = weights.mean(-3)
        return out.transpose(0, 1) if turned else out, weights

    def _nested(self, query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
        """Nested tensors, which ``nn.TransformerEncoder`` makes of padded input in evaluation, as packed sets."""
        targets = _packed_tokens(query)
        sources = targets if key is query else _packed_tokens(key)
        joined = (torch.cat(x.unbind()) for x in (query, key, value))
        out, _ = self.attend(*joined, targets=targets, sources=sources, causal=is_causal)
        parts = out.split([len(x) for x in query.unbind()])
        return torch.nested.as_nested_tensor(list(parts), layout=query.layout)

    # ---- tokens with mass ---------------------------------------------------------------------------

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        targets: Tokens | None = None,
        sources: Tokens | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The same on tokens with mass: padded ``(B, n, E)``, packed ``(n, E)`` or one set ``(n, E)``.

        Args:
            query, key, value: ``(..., n, E)``, ``(..., m, kdim)``, ``(..., m, vdim)``, batch first whatever the module's
                ``batch_first``.
            targets, sources: masses ``(B, n)``, ``(B, m)``, or packed sets; None means 1 and one set. For self-attention
                the same object. Padding may hold anything finite.
            causal: target i receives from sources j <= i of its set.
            bias: ``(..., n, m)``, added to the scores and broadcast over batch and heads; softmax only.
            need_weights: also return the matrices ``(..., H, n, m)``.

        Returns:
            ``(..., n, E)``; the projection of 0 for targets of mass 0.
        """
        check_pair("MultiheadMixer", targets, sources, query.shape[-2], key.shape[-2])
        own = targets is sources
        position = self.position
        if position is not None:
            alike, same = key is query, value is key
            query = position.inputs(query, sources if alike else targets)
            key = query if alike else position.inputs(key, sources)
            value = key if same else position.inputs(value, sources)
        targets = _with_heads("targets", targets, query.shape[:-2])
        sources = targets if own else _with_heads("sources", sources, key.shape[:-2])
        q, k, v = self.project(query, key, value)
        if self.bias_k is not None or self.add_zero_attn:
            if causal:
                raise ValueError(
                    "MultiheadMixer: causal order with add_bias_kv or add_zero_attn; the added source has no place in it. "
                    "Build the module without them, or pass mixer='softmax' an attn_mask."
                )
            k, v, sources, bias = self._add_sources(k, v, sources, bias)
        entering = v if position is None else position.values(v, sources, causal)
        out, weights = self.carry(
            q,
            k,
            entering,
            targets=targets,
            sources=sources,
            causal=causal,
            bias=bias,
            need_weights=need_weights,
        )
        if position is not None:
            out = position.beside(out, v, targets, sources, causal)
        return self.merge(out), weights

    def carry(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        targets: Tokens | None = None,
        sources: Tokens | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What stands between the projections, head by head and linear in the values: ``A_h v_h``.

        The position is in it where it is one of matrices of heads. What acts channel by channel (``shift``, the values of
        ``short-conv``) is not, nor what is added to the tokens before the projections.

        Args:
            q, k, v: ``(..., H, n, d)``, ``(..., H, m, d)``, ``(..., H, m, c)`` with any c.
            targets, sources: as in :meth:`attend`, masses with a head dimension (:meth:`~osmose.tokens.Tokens.heads`).
            causal, bias, need_weights: as in :meth:`attend`.

        Returns:
            ``(..., H, n, c)``, and the matrices ``(..., H, n, m)`` or None.
        """
        call: dict[str, Any] = {"targets": targets, "sources": sources, "causal": causal, "bias": bias}
        call["need_weights"] = need_weights
        if self.position is None:
            return self.mix(q, k, v, **call)
        if bias is not None and self.position.carries:
            require_open(bias)
        return self.position.carry(self, q, k, v, **call)

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        targets: Tokens | None = None,
        sources: Tokens | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`carry` without a position, of any heads."""
        mixer, p = mixer_of(self.mixer, "MultiheadMixer"), self.dropout if self.training else 0.0
        call: dict[str, Any] = {"targets": targets, "sources": sources, "causal": causal} | self.options
        if mixer.pairwise:
            call |= {"bias": bias, "dropout": p}
            if not need_weights:
                return mixer.function(q, k, v, **call), None
            weights = mixer.matrix(q, k, **call)  # the draw of dropout is in it
            return weights @ v, weights
        self.refuse_bias(bias)
        kept = self.kept_sources(v)
        out = mixer.function(q, k, v if kept is None else v * kept, **call)
        if not need_weights:
            return out, None
        weights = mixer.matrix(q, k, **call)
        return out, weights if kept is None else weights * kept.mT

    def refuse_bias(self, bias: Tensor | None) -> None:
        """Raise ValueError for a bias of pairs that a linear mixer was given."""
        if bias is not None:
            raise ValueError(
                f"MultiheadMixer: bias of pairs with mixer {self.mixer!r}, which never forms them; take mixer='softmax'."
            )

    def kept_sources(self, v: Tensor) -> Tensor | None:
        """One draw of dropout for every source and head, ``(..., H, m, 1)``; None for no dropout."""
        p = self.dropout if self.training else 0.0
        return F.dropout(torch.ones_like(v[..., :1]), p) if p > 0 else None

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head: ``(..., n, E)`` to ``(..., H, n, d)``."""
        joint, bias = self.in_proj_weight, self.in_proj_bias
        single = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = joint.chunk(3) if joint is not None else tuple(w for w in single if w is not None)
        biases = bias.chunk(3) if bias is not None else (None,) * 3
        parts = [F.linear(*of) for of in zip((query, key, value), weights, biases, strict=True)]
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2) for x in parts)
        return q, k, v

    def merge(self, x: Tensor) -> Tensor:
        """The output projection of all heads: ``(..., H, n, d)`` to ``(..., n, E)``."""
        return self.out_proj(x.transpose(-3, -2).flatten(-2))

    def _add_sources(
        self, k: Tensor, v: Tensor, sources: Tokens | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tokens | None, Tensor | None]:
        """One more source for ``bias_k`` and one for ``add_zero_attn``, of mass 1 and seen by all targets."""
        if sources is not None and sources.packed:
            raise ValueError(
                "MultiheadMixer: packed tokens with add_bias_kv or add_zero_attn; every set would need the source. "
                "Pad the batch, or build the module without them."
            )
        keys, values = [k], [v]
        if self.bias_k is not None and self.bias_v is not None:
            for parts, x in ((keys, self.bias_k), (values, self.bias_v)):
                extra = x.view(self.num_heads, 1, self.head_dim).to(k.dtype)
                parts.append(extra.expand(*k.shape[:-2], 1, -1))
        if self.add_zero_attn:
            for parts in (keys, values):
                parts.append(k.new_zeros(*k.shape[:-2], 1, self.head_dim))
        extra_sources = len(keys) - 1
        if sources is not None:
            mass = None if sources.mass is None else F.pad(sources.mass, (0, extra_sources), value=1.0)
            sources = Tokens(sources.n + extra_sources, mass)
        bias = None if bias is None else F.pad(bias, (0, extra_sources))
        return torch.cat(keys, -2), torch.cat(values, -2), sources, bias

    def extra_repr(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, mixer={self.mixer!r}{options}"


def _packed_tokens(nested: Tensor) -> Tokens:
    sizes = torch.tensor([len(x) for x in nested.unbind()], device=nested.device)
    ptr = F.pad(sizes.cumsum(0), (1, 0))
    return Tokens.of(int(ptr[-1]), ptr=ptr)


def _with_heads(name: str, tokens: Tokens | None, lead: torch.Size) -> Tokens | None:
    """Tokens of points ``(*lead, n, E)`` for points ``(*lead, H, n, d)``."""
    if tokens is None or tokens.mass is None:
        return tokens
    if tokens.mass.shape not in ((tokens.n,), (*lead, tokens.n)):
        raise ValueError(
            f"MultiheadMixer: {name} have masses of shape {tuple(tokens.mass.shape)}; expected {(*lead, tokens.n)}, or "
            f"{(tokens.n,)} for all."
        )
    return tokens.heads()
