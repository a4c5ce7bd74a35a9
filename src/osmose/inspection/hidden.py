"""The residual stream of a model: its tokens before the first block and after every block.

Shapes: B inputs, n tokens, d channels; ``...`` is B or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..models.difformer import DIFFormer
from ..models.exact import ExactDIFFormer
from ..nn import EncoderBlock
from ..tokens import Tokens
from .calls import _own


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """The states of one call of a model.

    Attributes:
        names: ``input``, then the name of the module that made each (a step of DIFFormer has that of its attention). Where tokens are
            remade between two blocks, as between the stages of a vision model, the state that enters the next is there
            too: ``into stages.1.blocks.0``.
        states: ``(..., n, d)`` for each; packed sets are padded, ``(sets, n, d)``. Padding may hold anything.
        masses: ``(..., n)`` for each, 0 where there is no token; None: all are there.
    """

    names: tuple[str, ...]
    states: tuple[Tensor, ...]
    masses: tuple[Tensor | None, ...]

    def stacked(self) -> Tensor:
        """``(layers + 1, ..., n, d)``.

        Raises:
            ValueError: layers of different shapes.
        """
        shapes = [tuple(x.shape) for x in self.states]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"HiddenStates: layers have the shapes {', '.join(map(str, dict.fromkeys(shapes)))}; expected one. Take .states."
            )
        return torch.stack(self.states)

    def __len__(self) -> int:
        return len(self.states)


@dataclass(eq=False)
class Stream:
    """What has run so far of the current call of a model: names, states and tokens, as a block was given them."""

    names: list[str] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    tokens: list[Tokens | None] = field(default_factory=list)
    call: Tokens | None = None
    """of the call as a whole, for models whose blocks are not told which tokens exist"""

    def begin(self, call: Tokens | None = None) -> None:
        """Forget the last call."""
        self.names, self.states, self.tokens, self.call = [], [], [], call

    def add(self, name: str, x: Tensor, tokens: Tokens | None) -> None:
        """One more state."""
        self.names.append(name)
        self.states.append(x.detach())
        self.tokens.append(self.call if tokens is None else tokens)

    def enters(self, name: str, x: Tensor, tokens: Tokens | None) -> None:
        """A block is given x: a new state unless the last one left it."""
        last = self.states[-1] if self.states else None
        if last is None:
            self.add("input", x, tokens)
        elif not (last is x or (last.shape == x.shape and torch.equal(last, x))):
            self.add(f"into {name}", x, tokens)

    def collected(self) -> HiddenStates:
        """The states, padded."""
        states, masses = [], []
        for x, tokens in zip(self.states, self.tokens, strict=True):
            if tokens is not None and tokens.packed:
                x, tokens = tokens.pad(x)
            states.append(x)
            masses.append(None if tokens is None or tokens.mass is None else tokens.mass.to(x.device))
        return HiddenStates(tuple(self.names), tuple(states), tuple(masses))


Streams = Callable[[nn.Module], Any]
"""What watches a model: :func:`residual_stream`, or that of an adapter."""

Parts = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], tuple[Tensor, Tokens | None]]
"""From the arguments of a block the tokens that it is given, and which of them exist."""


@contextmanager
def residual_stream(model: nn.Module, *, blocks: Sequence[str] | None = None) -> Iterator[Stream]:
    """While it lasts, the states of the model's last call are in the :class:`Stream`; outputs stay as they are.

    These are the states of DIFFormer and ExactDIFFormer after every step (with dropout before it), and what enters and leaves
    every :class:`~osmose.nn.EncoderBlock` and ``nn.TransformerEncoderLayer``. A final norm after the last block is no part
    of the stream.

    Args:
        model: left as it was, also after an error.
        blocks: names of modules that are the blocks of another kind of model, in which the first argument is the state and the
            result is the next one, or begins with it.

    Raises:
        ValueError: no block is found, or no module has a given name.
    """
    stream = Stream()
    with ExitStack() as stack:
        handle = model.register_forward_pre_hook(lambda module, arguments: stream.begin())
        stack.callback(handle.remove)
        found = 0
        modules = dict(model.named_modules())
        for name in [] if blocks is None else blocks:
            if name not in modules:
                raise ValueError(
                    f"residual_stream: {type(model).__name__} has no module {name!r}; expected names of its blocks, such as "
                    f"{', '.join(list(modules)[1:4])}."
                )
        for name, module in modules.items() if blocks is None else [(name, modules[name]) for name in blocks]:
            prefix = f"{name}." if name else ""
            if blocks is not None:
                stack.enter_context(watching(stream, name, module, _plain))
            elif isinstance(module, DIFFormer):
                stack.enter_context(_difformer(stream, prefix, module))
            elif isinstance(module, ExactDIFFormer):
                stack.enter_context(_exact(stream, prefix, module))
            elif isinstance(module, EncoderBlock):
                stack.enter_context(watching(stream, name, module, _encoder_block))
            elif isinstance(module, nn.TransformerEncoderLayer):
                batch_first = bool(module.self_attn.batch_first)
                stack.enter_context(watching(stream, name, module, _torch_layer, batch_first))
            elif isinstance(module, nn.TransformerEncoder):
                stack.enter_context(_own(module, use_nested_tensor=False))
                continue
            else:
                continue
            found += 1
        if not found:
            raise ValueError(
                f"residual_stream: {type(model).__name__} holds no DIFFormer, EncoderBlock or nn.TransformerEncoderLayer; name its "
                "blocks: blocks=['layers.0', ...]. For a Hugging Face model take osmose.adapters.hf."
            )
        yield stream


@torch.no_grad()
def hidden_states(
    model: nn.Module, *inputs: Any, blocks: Sequence[str] | None = None, **named: Any
) -> HiddenStates:
    """The residual stream of ``model(*inputs, **named)``: before the first block and after every block, in evaluation.

    Args:
        model, blocks: as for :func:`residual_stream`.
        inputs, named: what the model is called with.

    >>> import torch
    >>> from osmose.models import LanguageModel
    >>> found = hidden_states(LanguageModel(5, 8, num_layers=2, num_heads=2), torch.tensor([[0, 1, 2]]))
    >>> found.names, found.stacked().shape
    (('input', 'blocks.0', 'blocks.1'), torch.Size([3, 1, 3, 8]))

    Memory: that of the states.
    """
    return states_of(model, partial(model, *inputs, **named), partial(residual_stream, blocks=blocks))


@torch.no_grad()
def states_of(model: nn.Module, run: Callable[[], Any], streams: Streams) -> HiddenStates:
    """The states of one ``run()`` of a model in evaluation mode; which mode it was in is put back."""
    with evaluating(model), streams(model) as stream:
        run()
        return stream.collected()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; every module is afterwards as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def watching(
    stream: Stream, name: str, module: nn.Module, parts: Parts, batch_first: bool = True
) -> Iterator[None]:
    """Every call of a block: what it is given and what it gives, from the first of its results."""

    def turned(x: Tensor) -> Tensor:
        return x if batch_first or x.ndim < 3 else x.transpose(0, 1)

    def before(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        x, tokens = parts(module, arguments, named)
        stream.enters(name, turned(x), tokens)

    def after(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any], out: Any) -> None:
        x = out if isinstance(out, Tensor) else out[0]
        stream.add(name, turned(x), parts(module, arguments, named)[1])

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The state among the arguments of a block: the first tensor."""
    return next(value for value in (*arguments, *named.values()) if isinstance(value, Tensor))


def _plain(
    module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Tensor, Tokens | None]:
    return first_tensor(arguments, named), None


def _encoder_block(
    module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Tensor, Tokens | None]:
    given = dict(zip(("x", "tokens"), arguments, strict=False)) | dict(named)
    return given["x"], given.get("tokens")


def _torch_layer(
    module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Tensor, Tokens | None]:
    given = dict(zip(("src", "src_mask", "src_key_padding_mask"), arguments, strict=False)) | dict(named)
    padding = given.get("src_key_padding_mask")
    if padding is None:
        return given["src"], None
    return given["src"], Tokens.of(padding.shape[-1], key_padding_mask=padding)


@contextmanager
def _difformer(stream: Stream, prefix: str, model: DIFFormer) -> Iterator[None]:
    encode, enter = model.encode, model._input
    steps, begun = 0, True
    tokens: Tokens | None = None

    def encoded(x: Any, *arguments: Any, **named: Any) -> Tensor:
        nonlocal steps, begun, tokens
        steps, begun, told = 0, False, named.pop("monitor", None)
        tokens = Tokens.of(x.shape[-2], batch=named.get("batch"), mask=named.get("mask"))

        def monitor(before: Tensor, after: Tensor, alpha: float) -> None:
            nonlocal steps
            stream.add(f"{prefix}convs.{steps}", after, tokens)
            steps += 1
            if told is not None:
                told(before, after, alpha)

        return encode(x, *arguments, monitor=monitor, **named)  # type: ignore[arg-type]

    def entered(x: Any) -> Tensor:
        nonlocal begun
        h = enter(x)
        if not begun:  # a second set of sources, which has no steps, may follow
            begun = True
            stream.enters(f"{prefix}convs.0", h, tokens)
        return h

    with _own(model, encode=encoded, _input=entered):
        yield


@contextmanager
def _exact(stream: Stream, prefix: str, model: ExactDIFFormer) -> Iterator[None]:
    forward, initial = model.forward, model.initial
    tokens: Tokens | None = None

    def called(x: Any, *arguments: Any, **named: Any) -> Tensor:
        nonlocal tokens
        told, steps = named.pop("monitor", None), 0
        tokens = Tokens.of(x.shape[-2], batch=named.get("batch"), mask=named.get("mask"))

        def monitor(before: Tensor, after: Tensor, *rest: Any) -> None:
            nonlocal steps
            stream.add(f"{prefix}step.{steps}", after, tokens)
            steps += 1
            if told is not None:
                told(before, after, *rest)

        return forward(x, *arguments, monitor=monitor, **named)  # type: ignore[arg-type]

    def entered(x: Any) -> Tensor:
        h = initial(x)
        stream.enters(f"{prefix}step.0", h, tokens)
        return h

    with _own(model, forward=called, initial=entered):
        yield
