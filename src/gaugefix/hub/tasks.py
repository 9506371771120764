"""Tasks from transformers models: losses per sample, and batches that need no download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from gaugefix.hub.models import HubModel, context_length, hub_model, image_shape, output_logits
from gaugefix.task import Loss, Task

BATCH_SIZE, STEPS = 16, 32
TEXT = "tinyshakespeare.txt"


def hub_task(target: str, *, seed: int = 0, data_dir: Path | None = None) -> Task:
    """A task for a transformers model.

    Causal language models read bytes of ``tinyshakespeare.txt`` if it is in ``data_dir`` and their vocabulary holds
    256 symbols; everything else reads synthetic data that can be learned: sequences in which most symbols are
    followed by a fixed one, and images around one prototype for each class.

    Args:
        target: see `hub_model`.
        seed: of weights and data.
        data_dir: folder with the text.

    Returns:
        The task; a model from a folder is audited as it is (``epochs=0``).

    Raises:
        TaskError: as `hub_model`.
    """  # noqa: DOC502
    found = hub_model(target, seed=seed)
    return Task(
        found.model,
        _LOSSES[found.kind],
        _batches(found, data_dir, seed),
        lr=1e-3,
        weight_decay=0.1,
        batch_size=BATCH_SIZE,
        optimizer="adamw",
        name=found.name,
        epochs=0 if found.trained else 4,
        inputs=_arguments(found),
    )


# losses


def _token_loss(logits: Tensor, labels: Tensor) -> Float[Tensor, " n"]:
    """Cross-entropy averaged over the tokens of each sequence."""
    return nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)


def _next_token(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return _token_loss(output_logits(model(batch[0]))[:, :-1], batch[0][:, 1:])


def _every_token(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return _token_loss(output_logits(model(batch[0])), batch[1])


def _translated(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """The decoder sees the target shifted by one."""
    source, target = batch
    shifted = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], dim=1)
    return _token_loss(output_logits(model(source, None, shifted)), target)


def _class(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return nn.functional.cross_entropy(output_logits(model(batch[0])), batch[1], reduction="none")


_LOSSES: dict[str, Loss] = {
    "causal": _next_token,
    "masked": _every_token,
    "seq2seq": _translated,
    "sequence": _class,
    "image": _class,
}


def _arguments(found: HubModel) -> Callable[[Any], tuple[Any, ...]]:
    if found.kind == "seq2seq":
        return lambda batch: (batch[0], None, batch[1])
    return lambda batch: (batch[0],)


# batches


def _batches(found: HubModel, data_dir: Path | None, seed: int) -> Callable[..., Iterator[tuple[Tensor, ...]]]:
    data = _data(found, data_dir, torch.Generator().manual_seed(7919 * seed + 1))

    def batches(seed: int = 0, _base: int = seed) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(1_000_003 * _base + seed))
        for chunk in order.split(BATCH_SIZE):
            yield tuple(t[chunk] for t in data)

    return batches


def _data(found: HubModel, data_dir: Path | None, generator: torch.Generator) -> tuple[Tensor, ...]:
    n = BATCH_SIZE * STEPS
    if found.kind == "image":
        return _images(n, image_shape(found.config), found.config.num_labels, generator)
    length, vocabulary = min(32, context_length(found.config)), int(found.config.vocab_size)
    text = (data_dir or Path()) / TEXT
    if found.kind == "causal" and vocabulary >= 256 and text.is_file():
        return (_bytes(text, n, length, generator),)
    ids, follows = _sequences(n, length, vocabulary, generator)
    match found.kind:
        case "causal":
            return (ids,)
        case "masked":
            hidden = torch.rand(ids.shape, generator=generator) < 0.15
            return ids.masked_fill(hidden, 0), ids
        case "seq2seq":
            return ids, follows[ids]
        case _:
            return ids, ids[:, 0] % found.config.num_labels


def _bytes(text: Path, n: int, length: int, generator: torch.Generator) -> Tensor:
    """Random windows of a text, byte by byte."""
    stream = torch.from_numpy(np.fromfile(text, dtype=np.uint8).astype(np.int64))
    starts = torch.randint(len(stream) - length, (n, 1), generator=generator)
    return stream[starts + torch.arange(length)]


def _sequences(n: int, length: int, vocabulary: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences in which a symbol is followed by its successor with probability 0.8; and the table of successors."""
    follows = torch.randperm(vocabulary, generator=generator)
    ids = torch.randint(vocabulary, (n, length), generator=generator)
    kept = torch.rand(n, length, generator=generator) < 0.8
    for t in range(1, length):
        ids[:, t] = torch.where(kept[:, t], follows[ids[:, t - 1]], ids[:, t])
    return ids, follows


def _images(n: int, shape: tuple[int, int, int], classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise around one random prototype for each class."""
    prototypes = torch.randn(classes, *shape, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    return prototypes[labels] + torch.randn(n, *shape, generator=generator), labels
