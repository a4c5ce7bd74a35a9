"""DIFFormer: every layer is a step of a diffusion over all tokens.

    h_0   = dropout(relu(norm(W_in x)))
    h_k+1 = dropout(norm(alpha (mean_heads(S(h_k) V h_k) + A h_k [+ h_0]) + (1 - alpha) h_k))
    y     = W_out h_L

Wu et al., ICLR 2023 (2301.09474). S is the law ``row`` on the kernel ``simple`` (``[1, q][1, k]^T``, linear cost) or
``sigmoid`` (quadratic time, linear memory), or the baseline ``mean``: 1/n for every pair. With the released code's
Frobenius norm ``simple`` differs from ``mean`` by O(1/n): the baseline tells what the attention adds to it.

Shapes: n tokens, c channels, H heads, d hidden width, B padded sets.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import laws
from ..energy import DescentMonitor
from ..operators import LowRank, Operator, Pairwise
from ..ops.diffusion import diffusion_attention
from ..ops.diffusion.normalize import frobenius_rows, unit_rows
from ..ops.diffusion.projected import projected_simple_attention
from ..structure.graphs import DegreeOf, propagation
from ..tokens import Tokens, check_pair
from .graph_term import as_propagation
from .layers import check_input, dropout, linear
from .official import Checkpoint, check_names, count, read_state

Kernel = Literal["simple", "sigmoid", "mean"]
Normalization = Literal["row", "frobenius", "none"]
KERNELS = ("simple", "sigmoid", "mean")


class DIFFormerConv(nn.Module):
    """All-pair attention with diffusion kernels, averaged over heads; the graph term shares its values.

    Args:
        in_channels, out_channels: c and d.
        num_heads: H; every head has width d, the heads are averaged.
        kernel: ``simple``, ``sigmoid`` or ``mean``.
        use_weight: a value matrix; without it the value is the input and c must equal d.
        normalization: of queries and keys. ``row``: unit rows, the paper. ``frobenius``: unit Frobenius norm of the
            whole matrix over tokens and heads, the released code for ``simple``. ``none``: the released code for ``sigmoid``.
        norm_scope: tokens that a Frobenius norm runs over: ``set`` (each set alone) or ``batch`` (released code;
            couples the sets of a batch).
        graph_weight: 0 adds the graph term; w in (0, 1] gives (1 - w) attention + w graph.

    Cost: ``simple`` and ``mean`` O(n d^2 H), ``sigmoid`` O(n^2 d H) time; memory O(n d H) for all.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_heads: int = 1,
        *,
        kernel: Kernel = "simple",
        use_weight: bool = True,
        normalization: Normalization = "row",
        norm_scope: Literal["set", "batch"] = "set",
        graph_weight: float = 0.0,
    ):
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"DIFFormerConv: kernel is {kernel!r}; expected one of {', '.join(KERNELS)}.")
        if not use_weight and in_channels != out_channels:
            raise ValueError(
                f"DIFFormerConv: without use_weight the value is the input, so in_channels ({in_channels}) must equal "
                f"out_channels ({out_channels})."
            )
        if not 0 <= graph_weight <= 1:
            raise ValueError(
                f"DIFFormerConv: graph_weight is {graph_weight}; expected 0 (add) or a share in (0, 1]."
            )
        self.num_heads, self.kernel, self.graph_weight = num_heads, kernel, graph_weight
        self.normalization, self.norm_scope = normalization, norm_scope
        wide = num_heads * out_channels
        self.Wq = nn.Linear(in_channels, wide) if kernel != "mean" else None
        self.Wk = nn.Linear(in_channels, wide) if kernel != "mean" else None
        self.Wv = nn.Linear(in_channels, wide) if use_weight else None

    def forward(
        self,
        query: Tensor,
        source: Tensor | None = None,
        graph: Operator | None = None,
        *,
        targets: Tokens | None = None,
        sources: Tokens | None = None,
    ) -> Tensor:
        """Mix ``source (..., m, c)`` into ``query (..., n, c)``; None means the query itself. Gives ``(..., n, d)``."""
        source, sources = (query, targets) if source is None else (source, sources)
        check_pair("DIFFormerConv", targets, sources, query.shape[-2], source.shape[-2])
        v_BHMD = self._heads(source, self.Wv) if self.Wv is not None else source.unsqueeze(-3)
        attended = _mean_of_heads(self._attend(query, source, v_BHMD, targets, sources))
        if graph is None:
            return attended
        spread = graph @ _mean_of_heads(v_BHMD)  # the graph is the same for all heads
        w = self.graph_weight
        return (1 - w) * attended + w * spread if w > 0 else attended + spread

    def _attend(
        self, query: Tensor, source: Tensor, v_BHMD: Tensor, targets: Tokens | None, sources: Tokens | None
    ) -> Tensor:
        if self.kernel == "mean":
            s = (sources or Tokens(source.shape[-2])).heads()
            mean = s.mean(v_BHMD).to(v_BHMD.dtype)
            t = (targets or Tokens(query.shape[-2])).heads()
            out = t.spread(mean).expand(*v_BHMD.shape[:-2], query.shape[-2], -1)
            return out if t.mass is None else torch.where(t.mass.unsqueeze(-1) > 0, out, 0.0)
        assert self.Wq is not None
        assert self.Wk is not None
        if self._needs_no_rows(targets, sources):
            y = None if source is query else source
            return projected_simple_attention(query, y, self.Wq, self.Wk, self.num_heads)
        q_BHND, k_BHMD = self._heads(query, self.Wq), self._heads(source, self.Wk)
        # under autocast a linear layer gives another type than the state that serves as value
        dtype = torch.promote_types(q_BHND.dtype, v_BHMD.dtype)
        return diffusion_attention(
            q_BHND.to(dtype),
            k_BHMD.to(dtype),
            v_BHMD.to(dtype).expand(*v_BHMD.shape[:-3], self.num_heads, *v_BHMD.shape[-2:]),
            kernel=self.kernel,
            normalization=self.normalization,
            scope=self.norm_scope,
            targets=targets and targets.heads(),
            sources=sources and sources.heads(),
        )

    def _needs_no_rows(self, targets: Tokens | None, sources: Tokens | None) -> bool:
        """One scale for all queries and keys of a set, the state as value, every token there with mass 1."""
        plain = all(t is None or (t.mass is None and not t.packed) for t in (targets, sources))
        one_scale = self.kernel == "simple" and self.normalization == "frobenius" and self.norm_scope == "set"
        return plain and one_scale and self.Wv is None

    def _heads(self, x: Tensor, linear: nn.Linear | None) -> Tensor:
        assert linear is not None
        return linear(x).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def _normalised(self, x_BHND: Tensor, tokens: Tokens) -> Tensor:
        if self.normalization == "row":
            return unit_rows(x_BHND)
        return x_BHND if self.normalization == "none" else frobenius_rows(x_BHND, tokens, self.norm_scope)

    def attention(
        self,
        query: Tensor,
        source: Tensor | None = None,
        *,
        targets: Tokens | None = None,
        sources: Tokens | None = None,
    ) -> Operator:
        """The attention of every head as a lazy operator ``(..., H, n, m)``: ask it for rows, blocks, products.

        Its rows sum to 1 where there is a source. The graph term is not part of it.
        """
        source, sources = (query, targets) if source is None else (source, sources)
        t, s = (targets or Tokens(query.shape[-2])).heads(), (sources or Tokens(source.shape[-2])).heads()
        if self.kernel == "mean":
            ones = (query.new_ones(*x.shape[:-2], 1, x.shape[-2], 1) for x in (query, source))
            return laws.row(LowRank(*ones, targets=t, sources=s), targets=t, sources=s)
        q = self._normalised(self._heads(query, self.Wq), t)
        k = self._normalised(self._heads(source, self.Wk), s)
        if self.kernel == "sigmoid":
            return laws.row(Pairwise(q, k, "sigmoid", targets=t, sources=s), targets=t, sources=s)
        one_q, one_k = torch.ones_like(q[..., :1]), torch.ones_like(k[..., :1])
        kernel = LowRank(torch.cat([one_q, q], -1), torch.cat([one_k, k], -1), targets=t, sources=s)
        return laws.row(kernel, targets=t, sources=s)


def _mean_of_heads(x_BHND: Tensor) -> Tensor:
    return x_BHND.squeeze(-3) if x_BHND.shape[-3] == 1 else x_BHND.mean(-3)


class DIFFormer(nn.Module):
    """DIFFormer for one set of nodes, padded or packed batches of sets, and cross use as an encoder.

    Args:
        in_channels, hidden_channels, out_channels: sizes of features, state and output.
        num_layers: number of diffusion steps after the input layer.
        num_heads, kernel, use_weight, normalization, norm_scope, graph_weight: see :class:`DIFFormerConv`.
        dropout: probability, after the input layer and every step.
        alpha: step size in [0, 1].
        layer_norm: LayerNorm after the input layer and every step (``use_bn`` of the released code).
        residual: keep ``(1 - alpha) h``; without it the mixed state replaces the old one.
        use_graph: take the graph term where a graph is given.
        use_source: add the input state in every step.
        activation: ReLU in every step after the norm (the released model for batches of graphs).
        degree: see :func:`~osmose.structure.graphs.propagation`.

    Parameter names are those of the released code (``fcs``, ``bns``, ``convs.i.Wq`` ...).
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 2,
        num_heads: int = 1,
        kernel: Kernel = "simple",
        dropout: float = 0.2,
        alpha: float = 0.5,
        layer_norm: bool = True,
        residual: bool = True,
        use_weight: bool = False,
        use_graph: bool = True,
        graph_weight: float = 0.0,
        use_source: bool = False,
        activation: bool = False,
        normalization: Normalization = "row",
        norm_scope: Literal["set", "batch"] = "set",
        degree: DegreeOf = "weighted",
    ):
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"DIFFormer: alpha is {alpha}; expected a step size in [0, 1].")
        if not 0 <= dropout < 1:
            raise ValueError(f"DIFFormer: dropout is {dropout}; expected a probability in [0, 1).")
        d, self.in_channels = hidden_channels, in_channels
        self.fcs = nn.ModuleList([nn.Linear(in_channels, d), nn.Linear(d, out_channels)])
        self.bns = nn.ModuleList([nn.LayerNorm(d) for _ in range(num_layers + 1)])
        self.convs = nn.ModuleList(
            DIFFormerConv(
                d,
                d,
                num_heads,
                kernel=kernel,
                use_weight=use_weight,
                normalization=normalization,
                norm_scope=norm_scope,
                graph_weight=graph_weight,
            )
            for _ in range(num_layers)
        )
        self.dropout, self.alpha, self.layer_norm, self.residual = dropout, alpha, layer_norm, residual
        self.use_graph, self.use_source, self.activation, self.degree = (
            use_graph,
            use_source,
            activation,
            degree,
        )

    def prepare_graph(
        self, edge_index: Tensor, edge_weight: Tensor | None = None, num_nodes: int | None = None
    ) -> Operator | None:
        """What ``forward`` takes as ``edge_index``, made once instead of in every call; None if unused."""
        if not self.use_graph:
            return None
        dtype = next(self.parameters()).dtype
        return propagation(edge_index, edge_weight, num_nodes, degree=self.degree, dtype=dtype)

    def forward(
        self,
        x: Tensor | Operator,
        edge_index: Tensor | Operator | None = None,
        edge_weight: Tensor | None = None,
        *,
        batch: Tensor | None = None,
        mask: Tensor | None = None,
        monitor: DescentMonitor | None = None,
    ) -> Tensor:
        """Outputs ``(..., n, out_channels)``.

        Args:
            x: ``(n, c)``, as a tensor or by :func:`~osmose.models.layers.sparse_features`; or padded ``(B, n, c)``.
            edge_index: ``(2, e)``, or what :meth:`prepare_graph` made. Not for padded x.
            edge_weight: ``(e,)``, with an edge index only.
            batch: ``(n,)``, the set of each token; sets do not see each other.
            mask: bool ``(B, n)``, True = keep.
            monitor: called with the state before and after every step.

        Raises:
            ValueError: a shape that does not fit; a graph with padded x.
        """
        return self.fcs[1](self.encode(x, edge_index, edge_weight, batch=batch, mask=mask, monitor=monitor))

    def encode(
        self,
        x: Tensor | Operator,
        edge_index: Tensor | Operator | None = None,
        edge_weight: Tensor | None = None,
        *,
        source: Tensor | Operator | None = None,
        batch: Tensor | None = None,
        mask: Tensor | None = None,
        source_batch: Tensor | None = None,
        source_mask: Tensor | None = None,
        monitor: DescentMonitor | None = None,
    ) -> Tensor:
        """The state before the output layer, ``(..., n, d)``.

        With ``source (..., m, c)`` the diffusion is bipartite: the tokens of x take from the source tokens, whose
        state stays that of the input layer. Then there is no graph term.
        """
        num_sets = None
        if batch is not None and source_batch is not None:  # the last sets may be empty on one side
            num_sets = 1 + max((int(b.max()) for b in (batch, source_batch) if b.numel()), default=-1)
        x, targets = check_input("DIFFormer", x, self.in_channels, batch, mask, num_sets)
        h = first = self._input(x)
        y, sources, graph = None, targets, None
        if source is not None:
            if edge_index is not None:
                raise ValueError(
                    "DIFFormer: source and edge_index were given; the graph term has no meaning between two sets."
                )
            source, sources = check_input(
                "DIFFormer source", source, self.in_channels, source_batch, source_mask, num_sets
            )
            y = self._input(source)
        elif self.use_graph:
            graph = as_propagation(edge_index, edge_weight, x, "DIFFormer", batch=batch, degree=self.degree)
        for conv, norm in zip(self.convs, self.bns[1:], strict=True):
            before = h
            h = conv(h, y, graph, targets=targets, sources=sources)
            if self.use_source:
                h = h + first
            if self.residual:
                h = torch.lerp(before.to(h.dtype), h, self.alpha)
            if self.layer_norm:
                h = norm(h)
            if self.activation:
                h = F.relu(h)
            if monitor is not None:
                monitor(before, h, self.alpha)
            h = dropout(h, self.dropout, self.training)
        return h

    def _input(self, x: Tensor | Operator) -> Tensor:
        h = linear(x, self.fcs[0])
        h = F.relu(self.bns[0](h) if self.layer_norm else h)
        return dropout(h, self.dropout, self.training)

    @classmethod
    def from_official(cls, checkpoint: Checkpoint, *, prefix: str = "", **settings) -> DIFFormer:
        """A model with the weights of the authors' code.

        Args:
            checkpoint: a ``.pt`` / ``.pth`` / ``.safetensors`` file, or its state dict.
            prefix: of the parameter names, ``gnn_node.`` for their particle model.
            settings: what weights do not tell (kernel, alpha, residual, graph_weight, ...). Normalisation, its scope
                and degrees default to the released code's.

        Raises:
            ValueError: the names are not those of a DIFFormer; it lists the first that are missing.
        """
        state = read_state(checkpoint, prefix)
        names = ("fcs.0.weight", "fcs.1.weight", "bns.0.weight", "convs.0.Wq.weight")
        advice = f" The prefix is {prefix!r}; particle models need prefix='gnn_node.'."
        check_names("DIFFormer.from_official", state, names, advice)
        hidden, in_channels = state["fcs.0.weight"].shape
        kernel = settings.get("kernel", "simple")
        released = {
            "normalization": "frobenius" if kernel == "simple" else "none",
            "norm_scope": "batch",
            "degree": "in_degree",
        }
        model = cls(
            in_channels,
            hidden,
            state["fcs.1.weight"].shape[0],
            num_layers=count(state, "convs."),
            num_heads=state["convs.0.Wq.weight"].shape[0] // hidden,
            use_weight="convs.0.Wv.weight" in state,
            **(released | settings),
        ).to(state["fcs.0.weight"].dtype)
        own = model.state_dict()
        model.load_state_dict({name: value for name, value in state.items() if name in own})
        return model
