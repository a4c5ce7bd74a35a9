"""How much every source counts in trained image models: flow, linear and softmax attention side by side.

For flow these are the competition weights, for the others the means of the attention matrix's columns, all over their mean:
1 is a source like the others. The last block of the first stage, 16 x 16 tokens.

``python -m benchmarks.attention_maps [--runs FOLDER]`` takes the models of ``benchmarks.reproduce --sets cifar-images`` and
writes ``docs/figures/attention_maps.png``. The images are the first of the test part, one a class; nothing is chosen by eye.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from osmose.data import ImageData
from osmose.models import VisionClassifier
from osmose.tasks import sources
from osmose.tasks.run_folder import RunFolder
from osmose.tasks.saved import open_model

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"flowformer": "flow", "linear-transformer": "linear", "transformer": "softmax"}
SHOWN, COUNTED = 5, 300


def main(arguments: list[str] | None = None) -> None:
    """Draw the figure and print how evenly the sources give."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_maps", description=__doc__)
    runs = ROOT / "runs" / "reproduce" / "cifar-images-recipe"
    parser.add_argument("--runs", type=Path, default=runs, help="the comparison's folder")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures" / "attention_maps.png")
    options = parser.parse_args(arguments)
    saved = {name: open_model(RunFolder(options.runs / name)) for name in MODELS}
    config = saved["flowformer"].config
    data = sources.load(config.data, config.train.splits)
    assert isinstance(data, ImageData)
    data = data.for_split(0)
    test = data.splits[0].test
    test = test[:: max(len(test) // COUNTED, 1)]
    (images,) = data.batch(test)
    maps: dict[str, Tensor] = {}
    for name, mixer in MODELS.items():
        model = saved[name].model
        assert isinstance(model, VisionClassifier)
        found = model.source_weights(images, stage=0)
        maps[mixer] = found / found.mean((-1, -2), keepdim=True)
    for name, values in maps.items():
        print(f"{name:8} {_told(values)}")
    first = [int((data.y[test] == c).nonzero()[0]) for c in range(SHOWN)]
    _draw(data.x[test[first]], {name: values[first].mean(1) for name, values in maps.items()}, options.out)
    print(f"written: {options.out}")


def _told(maps: Tensor) -> str:
    """Of maps with mean 1: the share of sources that matters, exp of the entropy over their number; the extremes."""
    p = maps.flatten(2).clamp_min(1e-12)
    p = p / p.sum(-1, keepdim=True)
    share = (-(p * p.log()).sum(-1)).exp() / p.shape[-1]
    low, high = (maps.flatten(2).quantile(q, -1).mean() for q in (0.01, 0.99))
    return f"effective share of sources {share.mean():.3f}   1 % give less than {low:.2f}, 1 % more than {high:.2f}"


def _draw(images: Tensor, maps: dict[str, Tensor], path: Path) -> None:
    figure = Figure(figsize=(2.1 * (1 + len(maps)), 1.75 * len(images) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(images), 1 + len(maps))
    for row, image in zip(axes, images, strict=True):
        row[0].imshow(image.permute(1, 2, 0))
    for column, (name, values) in enumerate(maps.items(), start=1):
        for row, one in zip(axes, values, strict=True):
            most = max(float(one.max()), 1.01)
            shown = row[column].imshow(one, cmap="RdBu_r", norm=LogNorm(1 / most, most))
            bar = figure.colorbar(shown, ax=row[column], shrink=0.8)
            bar.set_ticks([1 / most, 1, most], labels=[f"{1 / most:.2g}", "1", f"{most:.2g}"])
            bar.ax.minorticks_off()
            bar.ax.tick_params(labelsize=7)
        axes[0][column].set_title(name, fontsize=10)
    axes[0][0].set_title("image", fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.suptitle(
        "weight of every source, mean of heads; 1 = like the others (each map has its own scale, logarithmic)",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
