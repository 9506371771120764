"""Phase diagrams of toy models: every cell and every seed as one tensor, beside one autograd run per cell.

The model is f = u·v·x with y = x + ½ξ and batches of 16, over 32 learning rates × 32 weight decays × 8 seeds. The peer
is what a training loop does: a loss, ``backward`` and ``torch.optim.SGD``, one cell after the other.
"""

from __future__ import annotations

import torch

from benchmarks.harness import Row, compare
from gaugefix.studies.local_maxima import A
from gaugefix.theory import landscapes, stability_window

RATES, DECAYS, SEEDS, BATCH = 32, 32, 8, 16
STEPS, ALONE, REPEATS = 100, 300, 5
MILLION = 1e6


def rows() -> list[Row]:
    """CPU time of a million SGD steps, and the ratio to one run per cell."""
    times = compare({"ensemble": product_ensemble, "alone": one_run, "walkers": walkers}, repeats=REPEATS)
    runs = RATES * DECAYS * SEEDS
    ensemble, alone = times["ensemble"] / (runs * STEPS), times["alone"] / ALONE
    walker = times["walkers"] / (runs * STEPS)
    note = f"{runs} runs of {STEPS} steps, batches of {BATCH}"
    return [
        Row("a million SGD steps, ensemble of two-layer products", MILLION * ensemble, "s", 1 / 3, REPEATS,
            f"{note}: {1e-6 / ensemble:.1f} M steps/s on one core"),
        Row("a million SGD steps, ensemble of walkers at a maximum", MILLION * walker, "s", 1 / 3, REPEATS,
            f"batches of one: {1e-6 / walker:.1f} M steps/s on one core"),
        Row("a million SGD steps, one autograd run per cell", MILLION * alone, "s", None, REPEATS,
            f"{1e-3 / alone:.1f} k steps/s"),
        Row("ensemble over autograd, time per step", ensemble / alone, "×", 1 / 300, REPEATS,
            f"{alone / ensemble:.0f} times as fast"),
    ]  # fmt: skip


def product_ensemble() -> torch.Tensor:
    """The product uv of every run after `STEPS` steps, ``(rates, decays, seeds)``."""
    shape = (RATES, DECAYS, SEEDS)
    lr = torch.logspace(-3, -0.5, RATES)[:, None, None].expand(shape).reshape(-1)
    keep = 1 - lr * torch.logspace(-4, 0, DECAYS)[None, :, None].expand(shape).reshape(-1)
    generator = torch.Generator().manual_seed(0)
    u = torch.ones_like(lr)
    v = u / 2
    x, noise, square, mixed = torch.empty(4, len(lr))
    for _ in range(STEPS):
        square.zero_()
        mixed.zero_()
        for _ in range(BATCH):  # sample by sample: the arrays stay in the cache
            square.addcmul_(x.normal_(generator=generator), x)
            mixed.addcmul_(x, noise.normal_(generator=generator))
        pull = lr / BATCH * (u * v * square - square - mixed / 2)  # lr times the mean of (uvx − y)x
        u, v = keep * u - pull * v, keep * v - pull * u
    return (u * v).reshape(shape)


def walkers() -> torch.Tensor:
    """Walkers on the quartic maximum of the study of local maxima, over as many learning rates."""
    toy = landscapes.quartic(A)
    low, high = stability_window(torch.tensor(toy.curvatures).numpy())
    lr = torch.linspace(low / 2, high, RATES)[:, None]
    generator = torch.Generator().manual_seed(0)
    w = torch.full((RATES, DECAYS * SEEDS), 0.3)
    first, second = toy.curvatures
    for _ in range(STEPS):
        h = torch.where(torch.rand(w.shape, generator=generator) < 0.5, first, second)
        w = w - lr * (h * w + toy.quartic * w**3)
    return w


def one_run() -> None:
    """The peer: one cell by autograd and an optimiser."""
    u, v = torch.ones(1, requires_grad=True), torch.full((1,), 0.5, requires_grad=True)
    sgd = torch.optim.SGD([u, v], lr=0.01, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(ALONE):
        x = torch.randn(BATCH, generator=generator)
        y = x + torch.randn(BATCH, generator=generator) / 2
        loss = ((u * v * x - y) ** 2).mean() / 2
        sgd.zero_grad()
        loss.backward()
        sgd.step()
