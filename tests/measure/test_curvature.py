import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from gaugefix import Mirror, Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import HessianOperator, exact_copy, hvp, lambda_min, o_hessian
from gaugefix.symmetry import Slice


def _dense(task, batch):
    """The Hessian of the mean loss by nested forward and reverse mode, parameters flattened."""
    params = {k: p.detach() for k, p in task.model.named_parameters()}
    sizes = [p.numel() for p in params.values()]

    def loss(flat):
        parts = {k: f.reshape(p.shape) for (k, p), f in zip(params.items(), flat.split(sizes), strict=True)}
        return nn.functional.cross_entropy(functional_call(task.model, parts, (batch[0],)), batch[1])

    return hessian(loss)(torch.cat([p.reshape(-1) for p in params.values()]))


@pytest.fixture
def task(mlp, make_task, blobs):
    return make_task(mlp((5, 4, 3), "tanh"), blobs, batch_size=16)


def _swap(task, i=0, j=1):
    index = np.arange(4).reshape(1, 4, 1)
    v = np.zeros(4)
    v[[i, j]] = np.sqrt(0.5), -np.sqrt(0.5)
    slices = (Slice("0.weight", 0, index, "write"), Slice("0.bias", 0, index, "write"))
    return Mirror("swap", (*slices, Slice("2.weight", 1, index, "read")), 0, v, "swap")


def _flat(tensors, like):
    return torch.cat([tensors[k].reshape(-1) if k in tensors else torch.zeros(p.numel()) for k, p in like.items()])


def test_product_equals_the_dense_hessian(task, blobs):
    dense = _dense(task, blobs)
    operator = HessianOperator(task)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):  # one graph, several products
        v = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in operator.params.items()}
        assert torch.allclose(_flat(operator @ v, v), dense @ _flat(v, v), rtol=1e-11, atol=1e-13)
    assert torch.allclose(_flat(hvp(task, v), v), dense @ _flat(v, v), rtol=1e-11, atol=1e-13)


class _Block(nn.Module):
    """Attention and norms: the derivative of fused attention's softmax has no right derivative of its own."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        h = self.norm(x)
        return self.head(x + self.attention(h, h, h, need_weights=False)[0]).mean(1)


@pytest.mark.parametrize(("make", "shape"), [
    (_Block, (5, 4)),
    (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3, bias=False)), (2, 5)),
    (lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)), (4,)),
    (lambda: nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 3)), (6, 4)),
])  # fmt: skip
@pytest.mark.parametrize("names", [None, ["weight"], ["bias"]])
def test_a_single_product_against_differences_of_gradients(make, shape, names):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, *shape, generator=generator, dtype=torch.float64)
    task = Task(make().double(), lambda m, b: m(b).sin().flatten(1).sum(1), lambda: [x[:4], x[4:]],
                lr=0.1, weight_decay=0.0, batch_size=4)  # fmt: skip
    params = dict(task.model.named_parameters())
    v = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()
         if names is None or k.rpartition(".")[2] in names}  # fmt: skip

    def gradient(step):
        moved = {k: p.detach() + step * v[k] if k in v else p.detach() for k, p in params.items()}
        loss = lambda q: task.loss(lambda inputs: functional_call(task.model, q, (inputs,)), x).mean()  # noqa: E731
        return torch.func.grad(loss)(moved)

    ahead, behind = gradient(1e-5), gradient(-1e-5)
    for found in (hvp(task, v), hvp(task, v)):  # the operations are checked in the first only
        for name in params:
            assert torch.allclose(found[name], (ahead[name] - behind[name]) / 2e-5, atol=1e-7)


def test_other_modules_are_checked_anew():
    """A forward derivative that was right says nothing about the one of fused attention."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double()
    task = Task(model, lambda m, b: m(b).sin().flatten(1).sum(1), lambda: [x], lr=0.1, weight_decay=0.0, batch_size=6)
    hvp(task, {k: torch.ones_like(p) for k, p in model.named_parameters()})
    model[0] = _Block().double()
    model[1] = nn.Identity()
    v = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in model.named_parameters()}
    assert torch.allclose(_flat(hvp(task, v), v), _flat(HessianOperator(task) @ v, v), rtol=1e-9, atol=1e-12)


def test_missing_entries_count_as_zero(task, blobs):
    v = {"0.bias": torch.ones(4, dtype=torch.float64)}
    full = dict(task.model.named_parameters())
    expected = _dense(task, blobs) @ _flat(v, full).double()
    assert torch.allclose(_flat(HessianOperator(task) @ v, full), expected, rtol=1e-11, atol=1e-13)


def test_block_is_the_projected_hessian(task, blobs):
    mirror, dense = _swap(task), _dense(task, blobs)
    params = {k: p.detach() for k, p in task.model.named_parameters()}
    k = mirror.codim(params)
    columns = [_flat(mirror.embed(e, params), params) for e in torch.eye(k, dtype=torch.float64)]
    o = torch.stack(columns, dim=1).double()
    block = o_hessian(task, mirror)
    assert block.codim == k == 9
    assert block.matrix == pytest.approx((o.T @ dense @ o).numpy(), abs=1e-12)
    assert block.converged
    assert block.distance == pytest.approx(mirror.distance(params))


def test_lanczos_finds_the_same_lowest_eigenvalues(task):
    dense = o_hessian(task, _swap(task))
    sparse = o_hessian(task, _swap(task), dense_limit=0, n_lowest=3)
    assert sparse.matrix is None
    assert sparse.converged
    assert sparse.eigenvalues == pytest.approx(dense.eigenvalues[:3], abs=1e-8)


def test_on_the_plane_the_block_decouples(task):
    mirror = _swap(task)
    params = {k: p.detach() for k, p in task.model.named_parameters()}
    with torch.no_grad():
        for k, p in task.model.named_parameters():
            p.copy_(mirror.project(params)[k])
    operator = HessianOperator(task)
    v = torch.ones(mirror.codim(params), dtype=torch.float64)
    image = operator @ mirror.embed(v, operator.params)
    tangential = {k: (image[k] + mirror.reflect(image)[k]) / 2 for k in image}
    assert max(float(t.abs().max()) for t in tangential.values()) < 1e-15


def test_lowest_eigenvalue_of_the_whole_hessian(task, blobs):
    value, residual = lambda_min(task)
    assert value == pytest.approx(float(torch.linalg.eigvalsh(_dense(task, blobs))[0]), abs=1e-8)
    assert residual < 1e-6


def test_attention_has_a_second_derivative():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12)

        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(*self.qkv(x).unsqueeze(1).chunk(3, -1)).mean((1, 2))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, generator=generator)
    task = Task(Attention(), lambda m, b: m(b).square().sum(1), lambda: [x], lr=0.1, weight_decay=0.0, batch_size=6)
    operator = HessianOperator(task)
    image = operator @ {k: torch.ones_like(p) for k, p in operator.params.items()}
    assert float(image["qkv.weight"].abs().sum()) > 0


def test_frozen_parameters_are_refused(task):
    mirror = _swap(task)
    task.model[0].weight.requires_grad_(False)
    with pytest.raises(MeasurementError, match=r"0\.weight"):
        o_hessian(task, mirror)
    task.model.requires_grad_(False)
    with pytest.raises(MeasurementError, match="requires_grad"):
        HessianOperator(task)


def test_the_copy_does_not_touch_the_original(task):
    for p in task.model.parameters():
        p.grad = torch.ones_like(p)
    task.model.train()
    copy = exact_copy(task)
    assert not copy.model.training
    assert task.model.training
    assert all(p.grad is None for p in copy.model.parameters())
    assert all(float(p.grad.sum()) == p.numel() for p in task.model.parameters())
