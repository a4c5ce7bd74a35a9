"""A text gone on with by the language model of a run."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from osmose.data.text import decode, encode
from osmose.models import LanguageModel
from osmose.tasks.run_folder import RunFolder
from osmose.tasks.saved import open_model


def generate(
    folder: RunFolder,
    prompt: str | None,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> tuple[str, Iterator[str]]:
    """The prompt, and `length` symbols after it, one by one as they are drawn, from a context of at most the windows that the model was
    trained on; see `LanguageModel.stream`.

    Raises ValueError for a run of another kind, an empty prompt, symbols that the model has not seen, and settings out of
    range, all before the first symbol is drawn.
    """
    saved = open_model(folder)
    if not isinstance(saved.model, LanguageModel):
        raise ValueError(
            f"{folder.path} holds no language model but {saved.config.model.name} for {saved.config.data.source}"
        )
    if "window" not in saved.preprocessing:
        raise ValueError(
            f"{folder.path} was saved before runs kept the window that they were trained on; train it again to generate from it"
        )
    if prompt is None:
        alphabet = saved.preprocessing["alphabet"]
        prompt = "\n" if "\n" in alphabet else alphabet[0]
    ids = encode(prompt, saved.preprocessing)[None]
    tokens = saved.model.stream(
        ids,
        length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        context=saved.preprocessing["window"],
        generator=torch.Generator().manual_seed(seed),
    )
    return prompt, (decode(token[0], saved.preprocessing) for token in tokens)
