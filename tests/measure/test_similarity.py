"""CKA against its definition with kernels, against itself in batches, and against invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaugefix.errors import MeasurementError
from gaugefix.measure import CKA, linear_cka, mutual_knn


def hsic_u(k, m):
    """Unbiased HSIC as Song et al. write it, O(n²)."""
    n = len(k)
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    one = torch.ones(n, dtype=k.dtype)
    first = (k * m).sum() + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (first - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def kernel_cka(x, y):
    k, m = x @ x.T, y @ y.T
    return float(hsic_u(k, m) / (hsic_u(k, k) * hsic_u(m, m)).sqrt())


def draw(n, p, seed=0):
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shapes", [(40, 5, 7), (6, 30, 4), (4, 3, 3), (12, 12, 20)])
def test_both_forms_are_the_definition(shapes):
    n, p, q = shapes
    x, y = draw(n, p, 1), draw(n, q, 2)
    y[:, :3] += x[:, :3]
    assert linear_cka(x, y) == pytest.approx(kernel_cka(x, y), rel=1e-10)
    a, b = x - x.mean(0), y - y.mean(0)
    biased = float((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))
    assert linear_cka(x, y, unbiased=False) == pytest.approx(biased, rel=1e-10)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(0, 100))
def test_batches_do_not_matter(sizes, seed):
    n = sum(sizes)
    if n < 4:
        return
    x, y = draw(n, 3, seed), draw(n, 4, seed + 1)
    y[:, 0] += x[:, 0]
    stream = CKA()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        stream.update(a, b)
    assert stream.n_samples == n
    assert stream.compute() == pytest.approx(kernel_cka(x, y), abs=1e-9)
    assert stream.compute(unbiased=False) == pytest.approx(linear_cka(x, y, unbiased=False), abs=1e-9)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("n", [9, 60])
def test_rotation_scale_and_shift_do_not_matter(unbiased, n):
    x, y = draw(n, 10, 3), draw(n, 10, 4) + 0.3 * draw(n, 10, 3)
    q = torch.linalg.qr(draw(10, 10, 5)).Q
    base = linear_cka(x, y, unbiased)
    assert linear_cka(1e3 - 7 * x @ q, y, unbiased) == pytest.approx(base, abs=1e-9)
    assert linear_cka(x, x @ q, unbiased) == pytest.approx(1, abs=1e-12)
    assert linear_cka(y, x, unbiased) == pytest.approx(base, abs=1e-12)
    assert linear_cka(x.reshape(n, 2, 5).float(), y.float(), unbiased) == pytest.approx(base, abs=1e-4)


def test_unrelated_representations_have_mean_zero_only_without_bias():
    found = [linear_cka(draw(16, 40, s), draw(16, 40, s + 1000)) for s in range(200)]
    spread = torch.tensor(found).std() / math.sqrt(200)
    assert sum(found) / 200 == pytest.approx(0, abs=4 * float(spread))
    assert linear_cka(draw(16, 40, 0), draw(16, 40, 1000), unbiased=False) > 0.5


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("n", [6, 50])
@pytest.mark.parametrize("value", [0.0, 3.7, 1e8])
def test_a_constant_representation_shares_nothing(unbiased, n, value):
    constant, x = torch.full((n, 8), value, dtype=torch.float64), draw(n, 8)
    assert linear_cka(constant, x, unbiased) == 0.0
    assert linear_cka(x, constant, unbiased) == 0.0
    assert linear_cka(constant, constant, unbiased) == 0.0
    stream = CKA()
    for a, b in zip(constant.split(4), x.split(4), strict=True):
        stream.update(a, b)
    assert stream.compute(unbiased=unbiased) == 0.0


def test_too_few_samples_are_an_error():
    for n in (1, 3):
        with pytest.raises(MeasurementError, match=f"4 samples are needed, got {n}"):
            linear_cka(draw(n, 2), draw(n, 2))
    stream = CKA()
    stream.update(draw(3, 2), draw(3, 2))
    with pytest.raises(MeasurementError, match="got 3"):
        stream.compute()
    assert linear_cka(draw(2, 2), draw(2, 2), unbiased=False) <= 1


def test_bad_input_is_named():
    with pytest.raises(MeasurementError, match="same samples, got 5 and 6"):
        linear_cka(draw(5, 2), draw(6, 2))
    with pytest.raises(MeasurementError, match="not finite"):
        linear_cka(draw(5, 2) / 0, draw(5, 2))
    stream = CKA()
    stream.update(draw(5, 2), draw(5, 3))
    with pytest.raises(MeasurementError, match=r"\(2, 3\) features"):
        stream.update(draw(5, 3), draw(5, 3))
    with pytest.raises(MeasurementError, match=r"k must be in \[1, 4\]"):
        mutual_knn(draw(5, 2), draw(5, 2), k=5)


def test_neighbours_are_those_of_a_loop():
    x, y = draw(30, 4, 1), draw(30, 6, 2)
    y[:, :4] += x

    def neighbours(t, i):
        cos = torch.nn.functional.cosine_similarity(t[i : i + 1], t)
        cos[i] = -2
        return set(cos.topk(5).indices.tolist())

    expected = sum(len(neighbours(x, i) & neighbours(y, i)) for i in range(30)) / 150
    assert mutual_knn(x, y, k=5) == pytest.approx(expected)
    assert mutual_knn(x, x @ torch.linalg.qr(draw(4, 4, 3)).Q, k=5) == 1.0


@pytest.mark.peer
def test_a_batch_at_a_time_is_not_what_torch_cka_gives():
    """torch-cka averages over batches; on one batch of all samples both are the same number."""
    peer = pytest.importorskip("torch_cka")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = [torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4)) for _ in range(2)]
    x = draw(64, 8).float()
    with torch.no_grad():
        exact = linear_cka(models[0][:2](x), models[1](x))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x), batch_size=64)
    cka = peer.CKA(*models, "a", "b", model1_layers=["1"], model2_layers=["2"], device="cpu")
    cka.compare(loader, loader)
    assert float(cka.export()["CKA"]) == pytest.approx(exact, abs=1e-4)
