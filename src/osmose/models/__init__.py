"""One readable file for each model family, and ``build``, which makes one from its settings.

Every model of nodes is called as ``model(x, graph, batch=...)`` where the graph is None, an edge index, or what
``model.prepare_graph`` made of one; every model of sequences as ``model(values, lengths)``, of images as ``model(images, sizes)``;
a language model as ``model(ids)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import SEQUENCE_MODELS, ModelConfig, Shape, is_for_sequences

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "GCN",
    "MLP",
    "DIFFormer",
    "DIFFormerConv",
    "DecisionModel",
    "ExactDIFFormer",
    "LanguageModel",
    "ModelConfig",
    "SequenceClassifier",
    "Shape",
    "VisionClassifier",
    "build",
    "is_for_sequences",
    "propagation",
    "sparse_features",
]

_HOME = {
    "DIFFormer": "difformer",
    "DIFFormerConv": "difformer",
    "DecisionModel": "decision",
    "ExactDIFFormer": "exact",
    "GCN": "baselines",
    "LanguageModel": "language",
    "MLP": "baselines",
    "SequenceClassifier": "flowformer",
    "Shape": "config",
    "VisionClassifier": "vision",
    "propagation": "graph_term",
    "sparse_features": "layers",
}


def __getattr__(name: str):
    """Models are imported when asked for: their settings alone need no torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def build(config: ModelConfig, shape: Shape) -> nn.Module:
    """The model that ``config`` describes, for data of this shape. Settings that its kind does not have are left out.

    Models of symbols and text take ids below ``shape.in_channels`` in place of that many channels.

    Raises:
        ValueError: an unknown name (with the nearest known one), or sizes that are not positive.
    """
    from .baselines import GCN, MLP
    from .difformer import DIFFormer, Kernel
    from .exact import ExactDIFFormer

    for name in ("hidden", "layers", "heads", "stages"):
        if getattr(config, name) < 1:
            raise ValueError(f"ModelConfig: {name} is {getattr(config, name)}; expected at least 1.")
    form, sizes = shape.form, (shape.in_channels, config.hidden, shape.out_channels)
    common: dict[str, Any] = {"num_layers": config.layers, "dropout": config.dropout}
    if is_for_sequences(config.name):
        common |= {"num_heads": config.heads, "mixer": SEQUENCE_MODELS[config.name]}
        if config.name == "flowformer":
            common["preset"] = config.preset
        if form == "images":
            from .vision import VisionClassifier

            layers = common.pop("num_layers")
            return VisionClassifier(
                shape.in_channels,
                shape.out_channels,
                hidden=[config.hidden << i for i in range(config.stages)],
                depths=[layers] * config.stages,
                patch=config.patch,
                **common,
            )
        if form in ("text", "series", "symbols"):
            common["position"] = None if config.position == "none" else config.position
        if form == "text":
            from .language import LanguageModel

            return LanguageModel(shape.in_channels, config.hidden, **common)
        if form == "control":
            from .decision import DecisionModel

            common |= {
                "context": config.context,
                "max_episode": shape.longest,
                "action_range": shape.action_range,
            }
            return DecisionModel(shape.in_channels, shape.out_channels, hidden=config.hidden, **common)
        from .flowformer import SequenceClassifier

        return SequenceClassifier(*sizes, symbols=form == "symbols", patch=config.patch, **common)
    if config.name == "mlp":
        return MLP(*sizes, **common)
    if config.name == "gcn":
        return GCN(*sizes, **common)
    if config.name == "difformer-exact":
        graph = 1.0 if config.use_graph else 0.0
        source = 1.0 if config.use_source else 0.0
        return ExactDIFFormer(
            *sizes, **common, alpha=config.alpha, graph_strength=graph, source_strength=source
        )
    kernels: dict[str, Kernel] = {"difformer-s": "simple", "difformer-a": "sigmoid", "mean": "mean"}
    if config.name not in kernels:
        from difflib import get_close_matches

        known = [*kernels, "difformer-exact", "gcn", "mlp", *SEQUENCE_MODELS]
        nearest = get_close_matches(config.name, known, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"ModelConfig: name is {config.name!r}; expected one of {', '.join(known)}.{hint}")
    return DIFFormer(
        *sizes,
        **common,
        kernel=kernels[config.name],
        num_heads=config.heads,
        alpha=config.alpha,
        layer_norm=config.layer_norm,
        residual=config.residual,
        use_weight=config.use_weight,
        use_graph=config.use_graph,
        graph_weight=config.graph_weight,
        use_source=config.use_source,
        normalization=config.normalization,
    )
