"""A Hugging Face model that lies in a folder, and texts for it; nothing is downloaded.

Needs ``pip install 'osmose[hf]'``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .hf import PreTrainedModel

CHARACTERS = 16  # of text for a token, more than tokens have on average


def open_folder(path: Path) -> tuple[PreTrainedModel, Any]:
    """The model without its head, in float32 and evaluation mode, and its tokenizer.

    Raises:
        ValueError: the folder holds none of them, or not whole.
    """
    from transformers import AutoModel, AutoTokenizer

    opened = []
    for what, kind, more in (
        ("model", AutoModel, {"dtype": torch.float32}),
        ("tokenizer", AutoTokenizer, {}),
    ):
        try:
            with _silent():
                opened.append(kind.from_pretrained(str(path), local_files_only=True, **more))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(
                f"{path}: its {what} cannot be read ({reason}); expected a folder that save_pretrained of a model and of its "
                "tokenizer have written"
            ) from error
    model, tokenizer = opened
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(
            f"{path}: its tokenizer knows no words, only marks; expected a folder into which the tokenizer was saved too"
        )
    return model.eval(), tokenizer


def text_batches(
    text: str, model: PreTrainedModel, tokenizer: Any, *, number: int, length: int | None, seed: int
) -> list[dict[str, Any]]:
    """Windows of a text, one a batch, as the tokenizer makes them, with its own marks at the ends.

    Args:
        number: how many, from random places.
        length: of each, in tokens; None: 128, or as many as the model takes if those are fewer. Windows of a short text are
            shorter.

    Raises:
        ValueError: no text, or more tokens than the model takes.
    """
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    limits = [n for n in (positions, tokenizer.model_max_length) if isinstance(n, int) and n > 0]
    most = min(limits, default=None)
    if length is None:
        length = 128 if most is None else min(128, most)
    if length < 2 or (most is not None and length > most):
        known = "" if most is None else f", and at most the {most} that the model takes"
        raise ValueError(f"--length is {length}; expected 2 tokens or more{known}")
    reach = CHARACTERS * length
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(max(len(text) - reach, 0) + 1, (number,), generator=draw).tolist()
    batches = []
    for start in dict.fromkeys(starts):
        window = text[start : start + reach]
        made = tokenizer(window, truncation=True, max_length=length, return_tensors="pt")
        batch = {name: value for name, value in made.items() if name in ("input_ids", "attention_mask")}
        if (
            len(tokenizer(window, add_special_tokens=False, truncation=True, max_length=length)["input_ids"])
            > 1
        ):
            batches.append(batch)
    if not batches:
        raise ValueError("--text holds no text: its windows have no two tokens; expected words")
    largest = max(int(batch["input_ids"].max()) for batch in batches)
    table: Any = model.get_input_embeddings()
    words = int(table.num_embeddings)
    if largest >= words:
        raise ValueError(
            f"the tokenizer gives token {largest} and the model knows {words}; expected the tokenizer of this model"
        )
    return batches


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bars and remarks of loading, such as that a head is left out."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
