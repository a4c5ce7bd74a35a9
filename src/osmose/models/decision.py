"""A return-conditioned decision model, the Decision Transformer, around any mixer with a causal form.

    x_t   = [W_R R_t + p_t,  W_s s_t + p_t,  W_a a_t + p_t]     three tokens a step, p_t by the timestep
    h_0   = dropout(norm([x_1, ..., x_K]))
    h_l   = block_l(h_{l-1})                                    pre-norm: mix in causal order, then feed-forward
    a_t   = range(W_out norm(h_L at s_t))                       sees R_1, s_1, a_1, ..., R_t, s_t

R_t is the return that is still to come. In training it is the recorded one; to act, one asks for a return and takes off
what was received. Chen et al., NeurIPS 2021 (2106.01345); with ``flow`` it is the model of Flowformer's offline control
(2202.06258).

Shapes: B episodes, K steps, S channels of a state, A of an action, E hidden channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers.states import StackState
from ..nn import EncoderBlock
from ..nn.blocks import Activation
from ..tokens import Tokens
from .language import sinusoids
from .official import Checkpoint, attention, check_names, count, moved, read_state


class DecisionModel(nn.Module):
    """The action at each step of an episode, from the return to come, the states and the actions so far.

    Args:
        state_dim: S.
        action_dim: A.
        hidden: E, a multiple of ``num_heads``; the feed-forward part has 4 E.
        num_layers, num_heads, dropout, activation: of the blocks; dropout also after the embedding.
        context: K, the steps that the model is trained on and that :meth:`act` is meant to see.
        max_episode: number of learned timesteps; None takes sinusoids, which have no end.
        action_range: low and high of an action, which a tanh keeps; None: no bounds.
        mixer, options: as for :class:`~osmose.nn.EncoderBlock`; it must have a causal form.

    Raises:
        ValueError: sizes, a range, a mixer or options that do not go together.

    Two ways to act. :meth:`act` sees the last K steps, as in the paper, and costs what K steps cost. :meth:`step` goes on
    from a state that holds the whole episode: a context without end, and with ``flow`` and ``linear`` the same time and
    memory for every step. The two agree for the first K steps and part after them; a model that was trained on windows
    of K steps has seen no longer context, so act with :meth:`step` where it was trained on whole episodes.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        hidden: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        context: int = 20,
        max_episode: int | None = 1000,
        mixer: str = "flow",
        dropout: float = 0.1,
        activation: Activation = "relu",
        action_range: tuple[float, float] | None = (-1.0, 1.0),
        **options: Any,
    ):
        super().__init__()
        sizes = {
            "state_dim": state_dim,
            "action_dim": action_dim,
            "num_layers": num_layers,
            "context": context,
        }
        sizes |= {} if max_episode is None else {"max_episode": max_episode}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"DecisionModel: {name} is {size}; expected 1 or more.")
        if action_range is not None and not action_range[0] < action_range[1]:
            raise ValueError(
                f"DecisionModel: action_range is {action_range}; expected low < high, or None for actions without bounds."
            )
        self.returns = nn.Linear(1, hidden)
        self.states = nn.Linear(state_dim, hidden)
        self.actions = nn.Linear(action_dim, hidden)
        self.timesteps = None if max_episode is None else nn.Embedding(max_episode, hidden)
        self.norm_in = nn.LayerNorm(hidden)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                hidden,
                num_heads,
                mixer=mixer,
                causal=True,
                dropout=dropout,
                activation=activation,
                norm_first=True,
                **options,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.output = nn.Linear(hidden, action_dim)
        if self.timesteps is not None:
            nn.init.normal_(self.timesteps.weight, std=0.02)
        self.state_dim, self.action_dim, self.context = state_dim, action_dim, context
        self.dropout, self.action_range = dropout, action_range

    def forward(
        self,
        returns: Tensor,
        states: Tensor,
        actions: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The action ``(B, K, A)`` at each of K steps; the recorded one of a step has no part in its own.

        Args:
            returns: ``(B, K, 1)``, still to come from that step on.
            states, actions: ``(B, K, S)`` and ``(B, K, A)``.
            timesteps: ``(B, K)`` int64, counted from the start of the episode.
            mask: ``(B, K)`` bool with True = keep. The other steps have no effect, on whichever side they stand and
                whatever they hold; their actions mean nothing. None: all are there.

        Raises:
            ValueError: shapes that do not fit, or a timestep beyond those that are learned.
        """
        self._check(returns, states, actions, timesteps, mask)
        tokens = None
        if mask is not None:
            returns, states, actions = (x.where(mask.unsqueeze(-1), 0.0) for x in (returns, states, actions))
            timesteps = timesteps.where(mask, 0)
            tokens = Tokens.of(3 * mask.shape[-1], mask=mask.repeat_interleave(3, -1))
        p = self._places(timesteps)
        x = torch.stack([self.returns(returns) + p, self.states(states) + p, self.actions(actions) + p], -2)
        x = self._enter(x.flatten(-3, -2))
        for block in self.blocks:
            x = block(x, tokens)
        return self._leave(x.unflatten(-2, (-1, 3))[..., 1, :])

    @torch.no_grad()
    def act(
        self,
        returns: Tensor,
        states: Tensor,
        actions: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The action ``(B, A)`` at the last of the given steps, without dropout; arguments as for :meth:`forward`.

        Give the last K steps. The action of the last one is not known yet; anything finite stands for it.
        """
        with _evaluating(self):
            return self(returns, states, actions, timesteps, mask)[:, -1]

    def start(self, batch: int = 1) -> StackState:
        """The state at the start of episodes, for :meth:`step`. Raises ValueError for a mixer that keeps none."""
        weight = self.states.weight
        blocks = tuple(block.start(batch, dtype=weight.dtype, device=weight.device) for block in self.blocks)  # type: ignore[operator]
        return StackState(torch.zeros(batch, dtype=torch.int64, device=weight.device), blocks)

    @torch.no_grad()
    def step(
        self, returns: Tensor, states: Tensor, state: StackState, previous: Tensor | None = None
    ) -> tuple[Tensor, StackState]:
        """The action ``(B, A)`` at the next step of episodes, without dropout, and their state with that step seen.

        Args:
            returns: ``(B, 1)``, still to come from this step on.
            states: ``(B, S)``, of this step.
            state: what :meth:`start` or the last call gave.
            previous: ``(B, A)``, the action that was taken at the step before; None at the first one only.

        Raises:
            ValueError: no previous action after the first step or one before it, shapes that do not fit, or an
                episode longer than the learned timesteps.
        """
        begun = bool((state.length > 0).any())
        if begun == (previous is None):
            came, expected = (
                ("None", "the action that was taken") if begun else ("given", "None at the first step")
            )
            raise ValueError(
                f"DecisionModel.step: previous is {came} at timestep {int(state.length.max())}; expected {expected}."
            )
        one = (returns[:, None], states[:, None], states.new_zeros(len(states), 1, self.action_dim))
        self._check(*one, state.length[:, None], None)
        p = self._places(state.length)
        tokens = [self.returns(returns) + p, self.states(states) + p]
        if previous is not None:
            tokens.insert(0, self.actions(previous) + self._places(state.length - 1))
        blocks = []
        with _evaluating(self):
            x = self._enter(torch.stack(tokens, -2))
            for block, before in zip(self.blocks, state.blocks, strict=True):
                x, after = block.step(x, before)  # type: ignore[operator]
                blocks.append(after)
            return self._leave(x[:, -1]), StackState(state.length + 1, tuple(blocks))

    def _places(self, timesteps: Tensor) -> Tensor:
        if self.timesteps is None:
            width, weight = self.states.out_features, self.states.weight
            return sinusoids(timesteps, width).to(weight.dtype)
        return self.timesteps(timesteps)

    def _enter(self, x: Tensor) -> Tensor:
        return F.dropout(self.norm_in(x), self.dropout, self.training)

    def _leave(self, x: Tensor) -> Tensor:
        x = self.output(self.norm(x))
        if self.action_range is None:
            return x
        low, high = self.action_range
        return (low + high) / 2 + (high - low) / 2 * x.tanh()

    def _check(
        self, returns: Tensor, states: Tensor, actions: Tensor, timesteps: Tensor, mask: Tensor | None
    ) -> None:
        steps = tuple(timesteps.shape)
        given = {
            "returns": (returns, 1),
            "states": (states, self.state_dim),
            "actions": (actions, self.action_dim),
        }
        for name, (x, width) in given.items():
            if len(steps) != 2 or tuple(x.shape) != (*steps, width):
                raise ValueError(
                    f"DecisionModel: {name} have shape {tuple(x.shape)} and timesteps {steps}; expected (batch, steps, "
                    f"{width}) and (batch, steps)."
                )
        if mask is not None and (tuple(mask.shape) != steps or mask.dtype != torch.bool):
            raise ValueError(
                f"DecisionModel: mask is {tuple(mask.shape)} {mask.dtype}; expected {steps} torch.bool, True = keep."
            )
        if self.timesteps is None or torch.compiler.is_compiling() or not timesteps.numel():
            return
        seen = timesteps if mask is None else timesteps.where(mask, 0)
        if int(seen.min()) < 0 or int(seen.max()) >= self.timesteps.num_embeddings:
            raise ValueError(
                f"DecisionModel: timesteps go from {int(seen.min())} to {int(seen.max())}; the model has learned 0 to "
                f"{self.timesteps.num_embeddings - 1}. Raise max_episode, or train with max_episode=None."
            )

    @classmethod
    def from_official(cls, checkpoint: Checkpoint, *, num_heads: int, **settings: Any) -> DecisionModel:
        """A model with the weights of the authors' decision model (``DecisionTransformer`` around Flow-Attention).

        What it predicts of states and returns is left out. Arguments and errors are those of
        :meth:`LanguageModel.from_official`; the preset is ``rl``, and actions lie in (-1, 1).
        """
        state = read_state(checkpoint)
        names = (
            "embed_return.weight",
            "embed_timestep.weight",
            "predict_action.0.weight",
            "transformer.ln_f.weight",
        )
        check_names(
            "DecisionModel.from_official", state, (*names, "transformer.h.0.attn.att.query_projection.weight")
        )
        layers = count(state, "transformer.h.")
        for i in range(layers):  # there ``x W`` in place of ``x W^T``
            for name in ("c_fc", "c_proj"):
                name = f"transformer.h.{i}.mlp.{name}.weight"
                state[name] = state[name].mT
        found = moved(
            state,
            {
                "returns": "embed_return",
                "states": "embed_state",
                "actions": "embed_action",
                "timesteps": "embed_timestep",
                "norm_in": "embed_ln",
                "norm": "transformer.ln_f",
                "output": "predict_action.0",
            },
        )
        for i in range(layers):
            ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
            parts = {"norm1": "ln_1", "norm2": "ln_2", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj"}
            found |= moved(state, {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()})
            found |= attention(state, f"{ours}.self_attn", f"{theirs}.attn.att")
        width, state_dim = state["embed_state.weight"].shape
        released: dict[str, Any] = {"preset": "rl", "max_episode": len(state["embed_timestep.weight"])}
        model = cls(
            state_dim,
            len(state["predict_action.0.weight"]),
            hidden=width,
            num_layers=layers,
            num_heads=num_heads,
            **(released | settings),
        ).to(state["embed_state.weight"].dtype)
        model.load_state_dict(found)
        return model


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout; the mode is as it was afterwards."""
    training = module.training
    if training:
        module.eval()
    try:
        yield
    finally:
        if training:
            module.train()
