"""Building a model: random from the table, or from a folder of one's own; weights by safetensors only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaugefix.errors import TaskError
from gaugefix.hub.architectures import ARCHITECTURES, Kind

PREFIX = "hf:"


@dataclass(frozen=True, eq=False)
class HubModel:
    """A model with what is needed to feed it.

    Attributes:
        model: in eval mode; on the meta device if asked for.
        kind: what it reads and is asked for.
        name: the target it was made from.
        trained: whether its weights were read from a folder.
    """

    model: nn.Module
    kind: Kind
    name: str
    trained: bool = False

    @property
    def config(self) -> Any:
        """Its transformers configuration."""
        return self.model.config

    def example(self, n: int = 2, length: int = 8) -> tuple[Any, ...]:
        """Positional arguments that fit the model; token ids run through the vocabulary.

        Args:
            n: batch size.
            length: number of tokens at most.

        Returns:
            Arguments on the device of the model.
        """
        device = next(self.model.parameters()).device
        if self.kind == "image":
            return (torch.zeros(n, *image_shape(self.config), device=device),)
        length = min(length, context_length(self.config))
        ids = torch.arange(n * length, device=device).reshape(n, length) * 7919 % int(self.config.vocab_size)
        ids[0, 0], ids[-1, -1] = 0, int(self.config.vocab_size) - 1
        return (ids, None, ids) if self.kind == "seq2seq" else (ids,)


def hub_model(target: str, *, meta: bool = False, weights: bool = True, seed: int = 0) -> HubModel:
    """Build or load a transformers model, without a network.

    Args:
        target: ``"hf:NAME"`` with a name of `ARCHITECTURES` (random weights), or ``"hf:FOLDER"`` as written by
            ``save_pretrained``: config.json with model.safetensors, or shards and model.safetensors.index.json.
        meta: build the structure on the meta device; a folder then needs no weights.
        weights: read the weights of a folder; if False, it gets random ones.
        seed: of random weights.

    Returns:
        The model in eval mode.

    Raises:
        TaskError: if transformers is missing, the name is unknown, or the folder has no usable configuration or
            weights.
    """
    name = target.removeprefix(PREFIX)
    if name in ARCHITECTURES:
        return _random(name, meta=meta, seed=seed)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise TaskError(
            f"{PREFIX}{name}: neither a known architecture nor a folder. Known: {', '.join(ARCHITECTURES)}. "
            "Nothing is downloaded: for a model of the hub give the folder with its config.json and safetensors."
        )
    return _from_folder(folder, meta=meta, weights=weights and not meta, seed=seed)


def _transformers(wanted: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise TaskError(f"{PREFIX}{wanted} needs transformers: pip install 'gaugefix[transformers]'.") from error
    return transformers


def _random(name: str, *, meta: bool, seed: int) -> HubModel:
    library, known = _transformers(name), ARCHITECTURES[name]
    if known.large and not meta:
        raise TaskError(
            f"{PREFIX}{name} is for the meta device only: it has no weights here. "
            f"Try `gaugefix symmetries {PREFIX}{name}`, or a small one: "
            f"{', '.join(n for n, a in ARCHITECTURES.items() if not a.large)}."
        )
    config = getattr(library, known.config)(**known.options)
    model = _build(getattr(library, known.model), config, meta=meta, seed=seed)
    return HubModel(model, known.kind, f"{PREFIX}{name}")


def _build(cls: Any, config: Any, *, meta: bool, seed: int) -> nn.Module:
    place = torch.device("meta") if meta else contextlib.nullcontext()
    with torch.random.fork_rng(devices=[]), place, _quiet():
        torch.manual_seed(seed)
        model: nn.Module = cls(config)
    return model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No advice of transformers on the console; its level of messages is as before afterwards."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _from_folder(folder: Path, *, meta: bool, weights: bool, seed: int) -> HubModel:
    library = _transformers(str(folder))
    where = f"{PREFIX}{folder}"
    if not (folder / "config.json").is_file():
        raise TaskError(
            f"{where}: there is no config.json. Save the model with model.save_pretrained({str(folder)!r})."
        )
    try:
        with _quiet():
            config = library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise TaskError(f"{where}: transformers cannot read config.json ({_first_line(error)}).") from error
    config.use_cache = False
    cls, kind = _class_of(library, config, where)
    if not weights:
        return HubModel(_build(cls, config, meta=meta, seed=seed), kind, where)
    _check_weights(folder, where)
    try:
        with _quiet():
            model, report = cls.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # broken or missing shards raise many types; whichever it is, it is the user's answer
        raise TaskError(f"{where}: the weights could not be loaded ({_first_line(error)}).") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if report.get(problem):
            names = sorted(str(k) for k in report[problem])
            raise TaskError(
                f"{where}: {len(names)} parameters of {cls.__name__} are not in the checkpoint ({problem}), "
                f"for example {names[0]!r}. The configuration and the weights do not belong together."
            )
    return HubModel(model.eval(), kind, where, trained=True)


def _check_weights(folder: Path, where: str) -> None:
    if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
        return
    pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
    if pickled:
        raise TaskError(
            f"{where}: {pickled[0]} is a pickle, which is never loaded. "
            "Convert it once where you trust it: model.save_pretrained(folder, safe_serialization=True)."
        )
    raise TaskError(
        f"{where}: no model.safetensors (or model.safetensors.index.json with shards). "
        f"For the structure alone, without weights: `gaugefix symmetries {where}`."
    )


# The head decides what the model is asked for; the first match counts.
_HEADS: tuple[tuple[str, Kind], ...] = (
    ("ForConditionalGeneration", "seq2seq"),
    ("ForSequenceClassification", "sequence"),
    ("ForImageClassification", "image"),
    ("ForMaskedLM", "masked"),
    ("ForCausalLM", "causal"),
    ("LMHeadModel", "causal"),
)


def _class_of(library: Any, config: Any, where: str) -> tuple[Any, Kind]:
    for name in config.architectures or ():
        kind = next((kind for ending, kind in _HEADS if name.endswith(ending)), None)
        if kind is not None and hasattr(library, name):
            return getattr(library, name), kind
    raise TaskError(
        f"{where}: the architecture {config.architectures or 'of config.json'} is not understood. Its name must end in "
        f"one of {', '.join(ending for ending, _ in _HEADS)}; for other models write a factory that returns a Task."
    )


def image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width that an image model reads; 32 pixels if its configuration names no size."""
    size = getattr(config, "image_size", 32)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(config.num_channels), int(height), int(width)


def context_length(config: Any) -> int:
    """Number of tokens that a model can read, at most 64."""
    return min(64, int(getattr(config, "max_position_embeddings", None) or 64))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def output_logits(result: Any) -> Tensor:
    """The logits of a model's output."""
    logits: Tensor = result.logits if hasattr(result, "logits") else result["logits"]
    return logits
