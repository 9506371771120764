import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from gaugefix import Task
from gaugefix.errors import ConvergenceWarning, MeasurementError
from gaugefix.measure import HessianOperator, hessian_extremes, lambda_min
from gaugefix.symmetry import Slice, Units


def _dense(task, batch, names=None):
    params = {k: p.detach() for k, p in task.model.named_parameters()}
    moved = {k: params[k] for k in (names or params)}
    sizes = [p.numel() for p in moved.values()]

    def loss(flat):
        parts = {k: f.reshape(p.shape) for (k, p), f in zip(moved.items(), flat.split(sizes), strict=True)}
        return task.loss(lambda x: functional_call(task.model, {**params, **parts}, (x,)), batch).mean()

    return hessian(loss)(torch.cat([p.reshape(-1) for p in moved.values()])).numpy()


@pytest.fixture
def task(mlp, make_task, blobs):
    return make_task(mlp((5, 9, 8, 3), "tanh"), blobs, batch_size=20)


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_against_the_dense_spectrum(task, blobs, which):
    values = np.linalg.eigvalsh(_dense(task, blobs))
    order = {"LA": -values, "SA": values, "LM": -np.abs(values)}[which]
    found = hessian_extremes(task, which=which, k=3)
    assert found.eigenvalues == pytest.approx(values[np.argsort(order)][:3], rel=1e-8)
    assert found.converged
    assert found.residual == found.residuals.max() < 1e-6
    assert found.hvps > 3
    assert (found.size, found.n_samples) == (len(values), 48)
    operator = HessianOperator(task)
    for value, tangent in zip(found.eigenvalues, found.tangents(), strict=True):
        image = operator @ tangent
        assert all(torch.allclose(image[k], value * v, atol=1e-6) for k, v in tangent.items())


def test_blocks_of_parameters_and_of_units(task, blobs):
    names = ["2.weight", "2.bias"]
    found = hessian_extremes(task, block=names, k=2)
    assert found.eigenvalues == pytest.approx(np.linalg.eigvalsh(_dense(task, blobs, names))[::-1][:2], rel=1e-8)
    assert hessian_extremes(task, block="2.bias").size == 8
    index = np.arange(9).reshape(1, 9, 1)[:, :4]  # four of the first layer's units
    units = Units("0", 4, 1, (Slice("0.weight", 0, index, "write"), Slice("2.weight", 1, index, "read")), "tanh")
    params = {k: p.detach() for k, p in task.model.named_parameters()}
    entries = []
    start = 0
    for k, p in params.items():
        where = np.arange(start, start + p.numel()).reshape(p.shape)
        entries += [where[:4].ravel()] if k == "0.weight" else [where[:, :4].ravel()] if k == "2.weight" else []
        start += p.numel()
    chosen = np.concatenate(entries)
    expected = np.linalg.eigvalsh(_dense(task, blobs)[np.ix_(chosen, chosen)])
    found = hessian_extremes(task, which="SA", block=units)
    assert found.block == "0"
    assert found.eigenvalues == pytest.approx(expected[:1], rel=1e-8)


@pytest.mark.slow
def test_six_digits_on_digits(mlp, make_task, digits):
    """The top eigenvalue of a network of 2410 parameters after some training, at the defaults."""
    x, y = digits[0][:512], digits[1][:512]
    task = make_task(mlp((64, 24, 24, 10), "tanh"), (x, y), batch_size=512)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(task.model, (x, y)).mean().backward()
        optimizer.step()
    found = hessian_extremes(task)
    expected = np.linalg.eigvalsh(_dense(task, (x, y)))
    assert found.size == 2410
    assert found.eigenvalues[0] == pytest.approx(expected[-1], rel=1e-8)
    assert lambda_min(task)[0] == pytest.approx(expected[0], rel=1e-8)


def test_no_convergence_is_said(task, monkeypatch):
    import scipy.sparse.linalg as sparse

    def fails(*args, **options):
        raise sparse.ArpackNoConvergence("no", np.zeros(0), np.zeros((0, 0)))

    monkeypatch.setattr(sparse, "eigsh", fails)
    with pytest.warns(ConvergenceWarning, match="residual inf"):
        found = hessian_extremes(task)
    assert not found.converged
    assert np.isnan(found.eigenvalues).all()


@pytest.mark.parametrize(("options", "message"), [
    ({"which": "largest"}, "'LA', 'SA' or 'LM'"), ({"k": 0}, "between 1 and"), ({"block": ["nope"]}, "nope"),
    ({"block": []}, "trainable parameters"),
])  # fmt: skip
def test_bad_arguments(task, options, message):
    with pytest.raises(MeasurementError, match=message):
        hessian_extremes(task, **options)


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_curvlinops_agrees(task, blobs):
    curvlinops = pytest.importorskip("curvlinops")
    from scipy.sparse.linalg import eigsh

    x, y = blobs
    peer = curvlinops.HessianLinearOperator(
        task.model, nn.CrossEntropyLoss(), list(task.model.parameters()), [(x, y)], check_deterministic=False
    )
    values = eigsh(peer.to_scipy(), k=2, which="LA", return_eigenvectors=False)
    assert hessian_extremes(task, k=2).eigenvalues == pytest.approx(np.sort(values)[::-1], rel=1e-6)


def test_through_attention():
    model = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = Task(model.double().eval(), lambda m, b: m(b).square().sum((1, 2)) + m(b).sum((1, 2)).exp(), lambda: [x],
                lr=0.1, weight_decay=0.0, batch_size=5)  # fmt: skip
    found = hessian_extremes(task, which="LM", k=2)
    assert found.converged
