"""scikit-learn's digits: the data set that needs no download."""

from __future__ import annotations

import torch

from .catalog import CATALOG
from .graph import knn_graph
from .node import NodeData
from .splits import per_class


def load_digits(*, splits: int, seed: int, labels_per_class: int, knn: int) -> NodeData:
    """1797 images of 8 x 8 pixels, intensities divided by 16, with the graph of the `knn` nearest images."""
    from sklearn import datasets

    pixels, digit = datasets.load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float() / 16
    y = torch.from_numpy(digit).long()
    return NodeData(
        name="digits",
        protocol="few-label",
        x=x,
        y=y,
        edge_index=knn_graph(x, knn),
        edge_weight=None,
        splits=per_class(
            y, labels_per_class=labels_per_class, valid=CATALOG["digits"].valid, splits=splits, seed=seed
        ),
        classes=[str(c) for c in range(10)],
        preprocessing={"kind": "named", "name": "digits", "features": 64, "normalize": None, "knn": knn},
        notes=[f"graph: {knn} nearest neighbours of every image"],
    )
