"""CIFAR-10 for studies in the full setting: JPEG files side by side in one array, as `cifar10_jpeg.npz` holds them."""

from __future__ import annotations

import io
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaugefix.errors import StudyError

_FILE = "cifar10_jpeg.npz"


def cifar10(n: int) -> tuple[Tensor, Tensor]:
    """The first training images, each channel with mean zero and variance one, and their labels.

    Args:
        n: how many.

    Returns:
        Float images ``(n, 3, 32, 32)`` and integer labels ``(n,)``.

    Raises:
        StudyError: if the file is not in the folder of the environment variable GAUGEFIX_DATA.
    """
    path = Path(os.environ.get("GAUGEFIX_DATA", ".")) / _FILE
    if not path.is_file():
        raise StudyError(
            f"The full setting reads {path}, which does not exist. "
            f"Give the folder of {_FILE} with the environment variable GAUGEFIX_DATA."
        )
    with np.load(path, allow_pickle=False) as data:
        images, labels = decoded(data["jpeg_train"], data["offsets_train"], n), data["y_train"][:n]
    x = torch.from_numpy(images.astype(np.float32)) / 255
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    return x, torch.from_numpy(labels.astype(np.int64))


def decoded(raw: np.ndarray, offsets: np.ndarray, n: int) -> np.ndarray:
    """The first pictures of an array of JPEG files.

    Args:
        raw: bytes of all files.
        offsets: where each begins, and the end.
        n: how many to decode.

    Returns:
        Bytes ``(n, 3, height, width)``.
    """
    from PIL import Image

    files = (raw[a:b].tobytes() for a, b in pairwise(offsets[: n + 1]))
    return np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files]).transpose(0, 3, 1, 2)
