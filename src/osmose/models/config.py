"""Settings of the models: plain data, no torch, so that the command line can show them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ModelName = Literal[
    "difformer-s",
    "difformer-a",
    "difformer-exact",
    "mean",
    "gcn",
    "mlp",
    "flowformer",
    "transformer",
    "linear-transformer",
]

SEQUENCE_MODELS = {"flowformer": "flow", "transformer": "softmax", "linear-transformer": "linear"}
"""Models of sequences, and the mixer of each."""


Form = Literal["nodes", "series", "symbols", "images", "text", "control"]
"""What a model is given: one set of nodes, sequences of vectors or of symbols, images, a text to go on with, episodes to act
in."""


@dataclass(frozen=True)
class Shape:
    """What the data decide about a model."""

    form: Form
    in_channels: int
    """channels of a node, a step, an image or a state; for symbols and text, their number"""
    out_channels: int
    """classes, symbols, or channels of an action"""
    action_range: tuple[float, float] | None = None
    """low and high of an action; None: no bounds"""
    longest: int | None = None
    """steps of an episode, at most; None: no bound"""


def is_for_sequences(name: str) -> bool:
    """Whether a model takes sequences, images, text or episodes; the others take nodes or rows."""
    return name in SEQUENCE_MODELS


@dataclass(frozen=True)
class ModelConfig:
    """What to build: a mixer stack or a baseline, and its sizes."""

    name: ModelName = "difformer-s"
    """difformer-s (linear cost), difformer-a (sigmoid kernel, quadratic time), difformer-exact (tied layers that
    provably descend their energy), or a baseline:
    mean (the attention replaced by the mean over all tokens), gcn, mlp. For sequences, images, text and
    control: flowformer, or with the same sizes transformer (softmax attention) and linear-transformer."""
    hidden: int = 64
    """width of the hidden state"""
    layers: int = 2
    """number of layers after the input layer"""
    heads: int = 1
    """attention heads; DIFFormer averages them"""
    dropout: float = 0.2
    """dropout probability"""
    alpha: float = 0.5
    """step size: state <- alpha * mixed + (1 - alpha) * state"""
    residual: bool = True
    """keep the (1 - alpha) * state part of the step"""
    layer_norm: bool = True
    """LayerNorm after every layer"""
    use_graph: bool = True
    """add the graph term where the data have edges"""
    graph_weight: float = 0.0
    """0: attention + graph; w in (0, 1]: (1 - w) * attention + w * graph"""
    use_weight: bool = False
    """a value matrix in every layer; without it the value is the state itself"""
    use_source: bool = False
    """add the input state in every layer"""
    normalization: Literal["row", "frobenius", "none"] = "row"
    """queries and keys of the simple kernel: unit rows (paper), unit Frobenius norm (released code)"""
    patch: int = 1
    """sequences: steps that the embedding joins into one token; images: side of the square that it joins"""
    stages: int = 2
    """images: stages of `layers` blocks each; from one to the next the width doubles and the grid halves"""
    context: int = 20
    """control: steps that the model sees"""
    preset: Literal["osmose", "paper", "core", "nlp", "rl", "vision", "series", "lra"] = "osmose"
    """flowformer: variant of Flow-Attention"""


def settings_of(name: str, form: str) -> frozenset[str]:
    """Which settings a model has; ``form`` is the kind of data: nodes, sequences, images, text, control."""
    sizes = {"name", "hidden", "layers", "dropout"}
    if is_for_sequences(name):
        own = {"images": {"patch", "stages"}, "text": set(), "control": {"context"}}.get(form, {"patch"})
        return frozenset(sizes | {"heads"} | own | ({"preset"} if name == "flowformer" else set()))
    if name in ("gcn", "mlp"):
        return frozenset(sizes)
    if name == "difformer-exact":
        return frozenset(sizes | {"alpha", "use_graph", "use_source"})
    of_sequences = {"patch", "stages", "context", "preset"}
    return frozenset(ModelConfig.__dataclass_fields__) - of_sequences
