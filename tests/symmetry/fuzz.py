"""Search random architectures for false claims and misses: ``python -m tests.symmetry.fuzz --n 10000``."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tests.symmetry.architectures import Plan, build, random_plan, shrink

from gaugefix.symmetry import find_symmetries
from gaugefix.symmetry.generic import generator_dims
from gaugefix.symmetry.verify import random_parameters
from gaugefix.testing import explain_hidden, flat_directions

#: points at which flat directions are counted until the count meets the claim; the smallest counts
SEEDS = 6
#: further points at which a miss is looked at
POINTS = 5


@dataclass(frozen=True)
class Outcome:
    """What a search made of one plan.

    Attributes:
        verdict: "complete", "explained" (a miss of which every direction has a measured cause), "miss", "false" (a
            claim that does not hold), "error" (the search failed) or "unclear" (no clean gap in the spectrum).
        claimed: continuous directions claimed.
        measured: smallest P − rank J over the seeds tried.
        detail: what is wrong, for people.
        causes: of what is missing, with the number of directions.
    """

    verdict: str
    claimed: int = 0
    measured: int = 0
    detail: str = ""
    causes: tuple[tuple[str, int], ...] = ()


def examine(plan: Plan, *, seeds: int = SEEDS, explain: bool = False) -> Outcome:
    """Search one plan and count its flat directions.

    Directions that exist at some points only (units that are dead or always on) are left out by taking the smallest
    count over several points.

    Args:
        plan: what to build.
        seeds: largest number of points.
        explain: look for the causes of what is missing.

    Returns:
        The outcome.
    """
    model, args = build(plan)
    if sum(p.numel() for p in model.parameters()) == 0:
        return Outcome("complete")
    try:
        found = find_symmetries(model, args, verify=True)
        if found.rejected:
            return Outcome("false", found.flat_dim, detail=", ".join(f"{v.name} {v.error:.0e}" for v in found.rejected))
        point = random_parameters(model, torch.Generator().manual_seed(1))
        dims = generator_dims(found, point)
    except Exception as error:  # whatever the search raises is the finding
        return Outcome("error", detail=f"{type(error).__name__}: {error}")
    claims = [s for s in found if s.level == "function"]
    wrong = [f"{s.name}: claims {s.dim}, adds {d}" for s, d in zip(claims, dims, strict=True) if s.dim != d]
    best, clean = None, False
    for seed in range(seeds):
        counted = flat_directions(model, args, seed=seed)
        if counted.reliable and (best is None or counted.flat < best):
            best, clean = counted.flat, True
        if best is not None and best <= found.flat_dim:
            break
    if best is None:
        return Outcome("unclear", found.flat_dim)
    if found.flat_dim > best or wrong:
        return Outcome("false", found.flat_dim, best, "; ".join(wrong) or "more directions claimed than there are")
    if best > found.flat_dim:
        opaque = ", ".join(f"{o.op}: {o.reason}" for o in found.opaque)
        detail = opaque or "; ".join(found.skipped)
        if not explain:
            return Outcome("miss", found.flat_dim, best, detail)
        why = explain_hidden(found, model, args, points=POINTS, seed=seeds)
        best = min(best, found.flat_dim + why.hidden) if why.points else best
        causes = tuple((c.kind, c.count) for c in why.causes)
        if best == found.flat_dim:
            return Outcome("complete", found.flat_dim, best, detail)
        return Outcome("explained" if why.explained else "miss", found.flat_dim, best, detail, causes)
    assert clean
    return Outcome("complete", found.flat_dim, best)


def completeness(counts: Counter[str]) -> float | None:
    """Share of searches that find every flat direction, among those that ran and claimed nothing false."""
    return _share(counts, "complete")


def _share(counts: Counter[str], *good: str) -> float | None:
    judged = counts["complete"] + counts["explained"] + counts["miss"]
    return sum(counts[g] for g in good) / judged if judged else None


def _fails_alike(plan: Plan, verdict: str) -> bool:
    outcome = examine(plan, seeds=SEEDS).verdict
    return outcome == verdict or (verdict == "explained" and outcome == "miss")


def run(
    start: int, n: int, *, minimise: bool = True, out: Path | None = None, budget: float = 1e9
) -> dict[str, object]:
    """Examine many seeds.

    Args:
        start: first seed.
        n: how many.
        minimise: shrink every failure.
        out: where to write the summary, renewed every 200 seeds.
        budget: stop after so many seconds.

    Returns:
        Counts by verdict, completeness, and the failures with their seeds and shrunk plans.
    """
    counts: Counter[str] = Counter()
    narrow: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    directions: Counter[str] = Counter()
    failures: list[dict[str, object]] = []
    begin = time.monotonic()
    summary: dict[str, object] = {}
    for seed in range(start, start + n):
        plan = random_plan(seed)
        outcome = examine(plan, explain=True)
        if outcome.verdict in {"miss", "explained"}:
            for kind, count in outcome.causes or (("unknown", outcome.measured - outcome.claimed),):
                causes[kind] += 1
                directions[kind] += count
        counts[outcome.verdict] += 1
        narrow[outcome.verdict] += plan.narrow
        if outcome.verdict in {"miss", "explained", "false", "error"}:
            small = plan
            if minimise:
                small = shrink(plan, lambda p, v=outcome.verdict: _fails_alike(p, v))
            failures.append({
                "seed": seed,
                **asdict(outcome),
                "plan": str(small),
                "shrunk": asdict(examine(small)) if minimise else None,
            })
        if (seed - start) % 200 == 199 or seed == start + n - 1 or time.monotonic() - begin > budget:
            summary = {
                "first_seed": start,
                "seeds": seed - start + 1,
                "counts": dict(counts),
                "false_claims": counts["false"],
                "completeness": completeness(counts - narrow),
                "completeness_narrow": completeness(narrow),
                "explained_or_complete": _share(counts, "complete", "explained"),
                "causes": {k: {"plans": causes[k], "directions": directions[k]} for k in causes},
                "torch": torch.__version__,
                "failures": failures,
            }
            if out is not None:
                _write(out, summary)
            if time.monotonic() - begin > budget:
                break
    return summary


def _write(path: Path, summary: dict[str, object]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(summary, file, indent=1)
    os.replace(file.name, path)


def main() -> None:
    """Parse arguments, run, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"))
    parser.add_argument("--budget", type=float, default=1e9, help="seconds")
    parser.add_argument("--no-shrink", action="store_true")
    options = parser.parse_args()
    summary = run(options.start, options.n, minimise=not options.no_shrink, out=options.out, budget=options.budget)
    print(json.dumps({k: v for k, v in summary.items() if k != "failures"}, indent=1))
    for failure in summary["failures"] if isinstance(summary["failures"], list) else []:
        print(*(failure[k] for k in ("verdict", "seed", "claimed", "measured", "detail", "causes")))
        print("   ", failure["plan"])


if __name__ == "__main__":
    main()
