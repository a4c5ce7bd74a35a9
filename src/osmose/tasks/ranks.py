"""How much of a model's layers is there: parameters, true degrees of freedom, and ranks of their values and scores.

Shapes: K members (heads, taps), P channels in, Q channels out, D width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from osmose.models.difformer import DIFFormerConv
from osmose.nn import MultiheadMixer
from osmose.structure import Factors, Full, Grouped, Heads, numerical_rank, stable_rank
from osmose.structure.factors import whole
from osmose.structure.layers import attention_factors, convolution_factors, linear_factors

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True, eq=False)
class FactorRanks:
    """A family ``(K, P, Q)`` of values or scores.

    Attributes:
        role: ``values`` (Theta) or ``scores`` (Lambda).
        shape: (K, P, Q).
        parameters: numbers stored in the matrices; biases aside.
        degrees_of_freedom: parameters minus gauge.
        spectra: singular values of every member, ``(K, r)``.
        ranks: how many of them count.
        stable_ranks: ``|X|_F^2 / |X|_2^2`` of every member.
        family_rank: rank of the ``(K, P Q)`` matrix of all members; values whose family rank is below K could do with fewer
            structures.
        family_spectrum: its singular values.
    """

    role: str
    shape: tuple[int, int, int]
    parameters: int
    degrees_of_freedom: int
    spectra: Tensor
    ranks: list[int]
    stable_ranks: list[float]
    family_rank: int
    family_spectrum: Tensor

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return {
            name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }


@dataclass(frozen=True, eq=False)
class LayerRanks:
    """One layer: its name in the model, its kind, and one or two families."""

    name: str
    kind: str
    families: tuple[FactorRanks, ...]

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "kind": self.kind, "families": [one.content() for one in self.families]}


@torch.no_grad()
def model_ranks(model: nn.Module, tolerance: float | None = None) -> list[LayerRanks]:
    """The ranks of every attention, convolution and linear layer, in the order of the model.

    Args:
        tolerance: singular values below this share of the largest count as 0; None means the larger side times the
            precision of the parameters.

    The projections of an attention layer count in it, not as layers of their own. Cost: singular values of every
    matrix, of heads from their factors.
    """
    layers: list[LayerRanks] = []
    inside: set[int] = set()  # modules of an attention layer
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        families: list[tuple[str, Factors, int]] = []
        kind = type(module).__name__
        if isinstance(module, (MultiheadMixer, nn.MultiheadAttention)):
            theta, scores = attention_factors(module)
            mixer = module.mixer if isinstance(module, MultiheadMixer) else "softmax"
            options = module.options if isinstance(module, MultiheadMixer) else {}
            kind = f"{kind} {mixer}" if isinstance(module, MultiheadMixer) else kind
            free = theta.degrees_of_freedom
            families = [("values", theta, free), ("scores", scores, score_freedom(scores, mixer, **options))]
        elif isinstance(module, DIFFormerConv):
            families = _difformer(module)
            kind = f"{kind} {module.kernel}"
        elif isinstance(module, _CONVOLUTIONS):
            taps = convolution_factors(module)
            families = [("values", taps, taps.degrees_of_freedom)]
        elif isinstance(module, nn.Linear):
            weight = linear_factors(module)
            families = [("values", weight, weight.degrees_of_freedom)]
        if not families:
            continue
        inside |= {id(part) for part in module.modules()}
        layers.append(LayerRanks(name, kind, tuple(_ranks(*family, tolerance) for family in families)))
    return layers


def score_freedom(scores: Heads, mixer: str, **options: Any) -> int:
    """Degrees of freedom of the scores' factors under a mixer: parameters minus what leaves its matrix as it is.

    A change of basis inside a head, ``q G, k G^-T``, keeps ``q k^T``: D^2 dimensions for kernels of plain scalar
    products. With rows of length 1 only orthogonal G, and the two lengths, are free; with one norm for all heads one length
    of the queries and one of the keys. Feature maps entry by entry leave nothing free (flow, linear), and the mean does
    not look at scores at all.
    """
    K, _, D = scores.left.shape
    rotations = D * (D - 1) // 2
    if mixer == "mean":
        return 0
    if mixer == "softmax":
        return scores.degrees_of_freedom
    if mixer.startswith("diffusion"):
        match options.get("normalization", "row"):
            case "none":
                return scores.degrees_of_freedom
            case "row":
                # of width 1 a row is its sign
                return scores.num_parameters - K * (rotations + 2) if D > 1 else 0
            case _:
                lengths = 2 if options.get("joint_heads", True) else 2 * K
                return scores.num_parameters - K * rotations - lengths
    if mixer == "linear" and D == 1:  # the query's feature cancels
        return scores.left.numel()
    return scores.num_parameters


def _difformer(module: DIFFormerConv) -> list[tuple[str, Factors, int]]:
    """Heads are averaged: Theta_k = W_V,k^T / H, and for the mean only their sum counts."""
    families: list[tuple[str, Factors, int]] = []
    H = module.num_heads
    if module.Wv is not None:
        theta = Full(module.Wv.weight.detach().unflatten(0, (H, -1)).mT / H)
        free = theta.num_parameters // (H if module.kernel == "mean" else 1)
        families.append(("values", theta, free))
    if module.Wq is not None and module.Wk is not None:
        right, left = (w.weight.detach().unflatten(0, (H, -1)).mT for w in (module.Wq, module.Wk))
        scores = Heads(left, right)
        free = score_freedom(scores, "diffusion", normalization=module.normalization)
        families.append(("scores", scores, free))
    return families


def _ranks(role: str, factors: Factors, freedom: int, tolerance: float | None) -> FactorRanks:
    precision = torch.finfo(factors.parameters[0].dtype).eps
    theta = whole(factors)
    shape = (theta.shape[0], theta.shape[1], theta.shape[2])
    spectra = _spectra(factors)
    share = precision * max(shape[1:]) if tolerance is None else tolerance
    family = torch.linalg.svdvals(theta.flatten(1))
    wide = precision * max(len(theta), theta[0].numel()) if tolerance is None else tolerance
    return FactorRanks(
        role=role,
        shape=shape,
        parameters=factors.num_parameters,
        degrees_of_freedom=freedom,
        spectra=spectra,
        ranks=[numerical_rank(s, share) for s in spectra],
        stable_ranks=[stable_rank(s) for s in spectra],
        family_rank=numerical_rank(family, wide),
        family_spectrum=family,
    )


def _spectra(factors: Factors) -> Tensor:
    if isinstance(factors, Heads):
        return factors.singular_values().float()
    if isinstance(factors, Grouped):
        return torch.linalg.svdvals(factors.blocks.float()).flatten(1).sort(descending=True).values
    return torch.linalg.svdvals(whole(factors))
