"""The residual networks of the study of type-II saddles, and the pictures that they see in the full setting."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from gaugefix.errors import StudyError
from gaugefix.studies import Setting, residual_rank
from gaugefix.studies.cifar import cifar10, decoded
from gaugefix.studies.residual_rank import FULL, QUICK, Scale, mean_rank, residual_network

image = pytest.importorskip("PIL.Image")


def test_the_full_network_is_resnet_18():
    model = residual_network(FULL, 3, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962  # of ResNet-18 for pictures of 32 × 32
    assert sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) == 20


def test_a_few_steps_of_several_stages_give_a_rank():
    """The way of the full setting, with narrow stages."""
    small = Scale((4, 8), 2, (0.4, 0.1), (4, 32), 5e-4, 10.0)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(40, 3, 8, 8, generator=generator), torch.randint(10, (40,), generator=generator)
    rank = mean_rank(small, data, 0.1, 8, 0, steps=3)
    assert 1 < rank <= 6  # the mean over convolutions with four and with eight channels
    assert rank == mean_rank(small, data, 0.1, 8, 0, steps=3)
    assert not math.isclose(rank, mean_rank(small, data, 0.1, 8, 1, steps=3))


def test_the_network_of_the_quick_setting_classifies_digits():
    x, y = residual_rank._pictures(Setting((0,)))
    assert residual_network(QUICK, 1, 0)(x[:5]).shape == (5, 10)
    assert x.shape == (1797, 1, 8, 8)
    assert y.max() == 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_full_setting_is_refused():
    with pytest.raises(StudyError, match="needs a GPU"):
        residual_rank.rank_differences(Setting((0,), full=True))


def test_pictures_are_read_from_the_data_folder(tmp_path, monkeypatch):
    grey = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    files = []
    for picture in grey:
        buffer = io.BytesIO()
        image.fromarray(picture).convert("RGB").save(buffer, format="JPEG", quality=95)
        files.append(buffer.getvalue())
    raw = np.frombuffer(b"".join(files), dtype=np.uint8)
    offsets = np.cumsum([0, *map(len, files)])
    assert np.abs(decoded(raw, offsets, 3)[:, 0].astype(int) - grey).max() < 12  # what JPEG loses
    monkeypatch.setenv("GAUGEFIX_DATA", str(tmp_path))
    with pytest.raises(StudyError, match="does not exist"):
        cifar10(2)
    np.savez(tmp_path / "cifar10_jpeg.npz", jpeg_train=raw, offsets_train=offsets, y_train=np.array([3, 1, 2]))
    x, y = cifar10(2)
    assert x.shape == (2, 3, 32, 32)
    assert y.tolist() == [3, 1]
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
