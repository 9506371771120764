"""A small GPT at low rank: a nuclear norm by factors, or factors early, against truncated singular vectors.

One block, 32 wide, on Shakespeare; the six matrices of attention and MLP are cut to the same rank, and everything is
trained with Adam for six passes over 2000 windows in all. "Truncated": four plain passes, the best approximation of
each matrix, two passes more on its factors. "Nuclear norm": two plain passes, two with `impose.low_rank` at full rank,
whose weight decay lowers small singular values first, then as before. "Factors early": two plain passes, then four on
factors of that rank. Perplexity on the last tenth of the text, five seeds; the target is that of truncation. Strength
was chosen on other windows and another seed. Runs that are done are kept in ``build/benchmarks``; delete it to start
over.
"""

from __future__ import annotations

import copy
from functools import cache, partial

import torch
from torch import nn

from benchmarks.forecast_problems import GPT, seeded
from benchmarks.harness import CELLS, Row
from benchmarks.pruning_problems import Data, perplexity, standard_error, text, train
from gaugefix.control import impose
from gaugefix.sweep import sweep

SEEDS = range(5)
RANKS = (8, 4)
CUT = ("attention.q", "attention.k", "attention.v", "attention.out", "up", "down")
PASSES, HALF, REFIT = 4, 2, 2
LR, BATCH, STRENGTH = 3e-3, 32, 1e-3
TRUNCATED, NUCLEAR, EARLY = "truncated", "nuclear norm", "factors early"
windows = cache(partial(text, 2000, 600))


def rows() -> list[Row]:
    """Perplexity of each way at each rank."""
    if windows() is None:
        return []
    done = sweep(run, {"strength": [STRENGTH]}, seeds=SEEDS, out=CELLS / "low_rank")
    whole = done.array("whole")[0]
    out = [
        Row("whole: perplexity", whole.mean(), "", None, len(SEEDS), f"± {standard_error(whole):.2f} standard error")
    ]
    for i, rank in enumerate(RANKS):
        base = done.array(TRUNCATED)[0][:, i]
        for method in (TRUNCATED, NUCLEAR, EARLY):
            score = done.array(method)[0][:, i]
            note = f"± {standard_error(score):.2f} standard error"
            if method != TRUNCATED:
                paired = score - base
                note += f"; {paired.mean():+.3f} ± {standard_error(paired):.3f} beside truncation with the same seeds"
            target = None if method == TRUNCATED else float(base.mean())
            name = f"rank {rank} of 32, {method}: perplexity"
            out.append(Row(name, float(score.mean()), "", target, len(SEEDS), note))
    return out


def run(strength: float, seed: int) -> dict[str, float | list[float]]:
    """All ways with one seed."""
    data = windows()
    assert data is not None
    model = seeded(partial(GPT, 65), seed)
    dense, warm = copy.deepcopy(model), model
    _train(dense, data, PASSES, seed)
    _train(warm, data, HALF, seed)
    nuclear = copy.deepcopy(warm)
    for name in CUT:
        impose.low_rank(nuclear, f"{name}.weight", strength=strength)
    _train(nuclear, data, PASSES - HALF, seed + 100, imposed=True)
    impose.collapse_(nuclear, threshold=0.0)
    return {
        "whole": perplexity(dense, data),
        TRUNCATED: [_at_rank(dense, data, rank, REFIT, seed) for rank in RANKS],
        NUCLEAR: [_at_rank(nuclear, data, rank, REFIT, seed) for rank in RANKS],
        EARLY: [_at_rank(warm, data, rank, PASSES - HALF + REFIT, seed) for rank in RANKS],
    }


def _at_rank(model: nn.Module, data: Data, rank: int, passes: int, seed: int) -> float:
    """The best approximation of this rank, trained on as two factors."""
    small = copy.deepcopy(model)
    for name in CUT:
        impose.low_rank(small, f"{name}.weight", strength=0.0, rank=rank)
    _train(small, data, passes, seed + 200, imposed=True)
    return perplexity(small, data)


def _train(model: nn.Module, data: Data, passes: int, seed: int, *, imposed: bool = False) -> None:
    adam = torch.optim.Adam
    optimizer = impose.optimizer(adam, model, lr=LR) if imposed else adam(model.parameters(), lr=LR)
    train(model, optimizer, data, passes, seed, batch=BATCH, clip=5.0)
