"""Final metrics of a classifier on one split."""

from __future__ import annotations

import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from osmose.data import Split


def final_metrics(logits: Tensor, y: Tensor, split: Split) -> dict[str, float]:
    """Accuracy, macro F1 and cross-entropy on every part of the split, from one table of logits (n, classes)."""
    found = {}
    for part, index in split.parts().items():
        chosen, target = logits[index], y[index]
        predicted, true = chosen.argmax(dim=1).cpu().numpy(), target.cpu().numpy()
        found[f"{part}_accuracy"] = float(accuracy_score(true, predicted))
        found[f"{part}_macro_f1"] = float(f1_score(true, predicted, average="macro", zero_division=0.0))
        found[f"{part}_loss"] = F.cross_entropy(chosen, target).item()
    return found
