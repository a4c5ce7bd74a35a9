"""What `osmose particles` tells of a study: a row for each state, and the particle model beside it where there is one."""

from __future__ import annotations

import math
import statistics
from typing import Any

from torch import nn

from osmose.dynamics.hidden import STATISTICS, Spread
from osmose.inspection import ParticleStudy
from osmose.models import DIFFormer


def result_of(study: ParticleStudy, about: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Everything of a study but its histograms, ready for JSON: numbers that are not finite are None, with a reason."""
    rows = []
    for layer, (name, reading) in enumerate(zip(study.names, study.layers, strict=True)):
        row: dict[str, Any] = {"state": name, "tokens": _spread(reading.tokens)}
        row |= {statistic: _spread(reading[statistic]) for statistic in STATISTICS}
        rows.append(row | _beta_of_layer(study, layer))
    attentions = [
        {
            "attention": one.name,
            "state": one.layer,
            "causal": one.causal,
            "heads": [
                {
                    "matched": _number(head.matched),
                    "matched_sd": _number(head.matched_sd),
                    "slope": _number(head.slope),
                    "slope_sd": _number(head.slope_sd),
                    "r2": _number(head.r2),
                    "used": _number(head.used),
                    "reason": head.reason,
                }
                for head in one.heads
            ],
            "reason": one.reason,
        }
        for one in study.attentions
    ]
    return {
        **about,
        "beta": study.beta,
        "beta_from": study.beta_from,
        "scale": study.scale,
        "scale_from": study.scale_from,
        "centred": study.centre,
        "states": rows,
        "attentions": attentions,
        "no_attention": study.unseen,
        "particle_model": particle_model(study, model),
    }


def particle_model(study: ParticleStudy, model: nn.Module) -> list[float] | None:
    """The mean inner product by state of SA on equal inner products, from that of the first state; None where it is no model.

    Only a DIFFormer whose values are its states is one: ``alpha P h + (1 - alpha) h``, normalised, has the directions of the
    layer ``h + s P h`` with ``s = alpha / (1 - alpha)``, V = I. Taken at the matched beta of every layer. What a trained one has besides
    stays out: the graph term, queries and keys of their own, gain and bias of LayerNorm.
    """
    from osmose.dynamics.theory import layer_gap

    if not isinstance(model, DIFFormer) or model.use_source or study.centre:
        return None
    if any(conv.Wv is not None for conv in model.convs):
        return None
    n = round(study.layers[0].tokens.mean)
    start = study.layers[0]["mean_product"].mean
    if n < 2 or not -1 / (n - 1) <= start <= 1:
        return None
    step = model.alpha / (1 - model.alpha) if model.residual and model.alpha < 1 else math.inf
    gap, curve = 1 - start, [start]
    for layer in range(1, len(study.layers)):
        betas = [head.matched for head in study.heads(layer)]
        if not betas or not all(map(math.isfinite, betas)):
            return None
        gap = float(layer_gap(gap, statistics.mean(betas), n, step)) if step > 0 else gap
        curve.append(1 - gap)
    return curve


def _beta_of_layer(study: ParticleStudy, layer: int) -> dict[str, Any]:
    heads = study.heads(layer)
    out: dict[str, Any] = {"heads": len(heads)}
    for name in ("matched", "slope", "r2"):
        known = [v for v in (getattr(head, name) for head in heads) if math.isfinite(v)]
        out[name] = statistics.median(known) if known else None
    return out


def _spread(value: Spread) -> dict[str, float | None]:
    return {"mean": _number(value.mean), "sd": _number(value.sd)}


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
