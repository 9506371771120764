"""Search random architectures for false claims and misses: ``python -m tests.symmetry.fuzz --n 10000``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from tests.symmetry.architectures import Plan, build, random_plan, shrink
from torch import Tensor, nn

import gaugefix
from gaugefix.symmetry import Symmetries, find_symmetries
from gaugefix.symmetry.generic import count_generators
from gaugefix.symmetry.verify import judgeable_parameters
from gaugefix.testing import FlatDirections, explain_hidden, flat_directions

#: points at which flat directions are counted until the count meets the claim; the smallest counts
SEEDS = 6
#: seeds that one process examines before the summary is renewed
CHUNK = 100
#: points at which a claim must fail to be called false
CONFIRMATIONS = 3
#: further points at which a miss is looked at
POINTS = 5
#: and where that does not explain it, for functions with kinks: units are dead somewhere at most points
MORE_POINTS = 80


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


def examine(plan: Plan, *, seeds: int | None = None, explain: bool = False) -> Outcome:
    """Search one plan and count its flat directions.

    The generators found are compared with the null space of the Jacobian at the same point. Directions that exist at
    some points only (units that are dead or always on) are left out by taking the smallest count over several points.

    Args:
        plan: what to build.
        seeds: largest number of points; by default `SEEDS`, or 2 for an analytic function, whose rank is generic.
        explain: look for the causes of what is missing.

    Returns:
        The outcome.
    """
    model, args = build(plan)
    if sum(p.numel() for p in model.parameters()) == 0:
        return Outcome("complete")
    seeds = seeds or (SEEDS if _has_kinks(plan) else 2)
    try:
        found = find_symmetries(model, args, verify=True)
        if found.rejected:
            return Outcome("false", found.flat_dim, detail=", ".join(f"{v.name} {v.error:.0e}" for v in found.rejected))
        for confirmation in range(CONFIRMATIONS):
            counted, wrong = _hold_against_jacobian(found, model, args, seed=1 + 1000 * confirmation)
            if not wrong:
                break
        counts = [counted]
        while len(counts) < seeds and not any(c.reliable and c.flat <= found.flat_dim for c in counts):
            counts.append(flat_directions(model, args, seed=len(counts) + 1, at_least=found.flat_dim))
        # at the first point every claim holds; a count below the claims at another is rounding beside a singular point
        best = min((max(c.flat, found.flat_dim) for c in counts if c.reliable), default=None)
    except Exception as error:  # whatever the search raises is the finding
        return Outcome("error", detail=f"{type(error).__name__}: {error}")
    if wrong:
        return Outcome("false", found.flat_dim, counted.flat, "; ".join(wrong))
    if best is None:
        return Outcome("unclear", found.flat_dim)
    if best > found.flat_dim:
        opaque = ", ".join(f"{o.op}: {o.reason}" for o in found.opaque)
        detail = opaque or "; ".join(found.skipped)
        if not explain:
            return Outcome("miss", found.flat_dim, best, detail)
        why = explain_hidden(found, model, args, points=POINTS, seed=len(counts))
        if not why.explained and _has_kinks(plan):
            why = explain_hidden(found, model, args, points=MORE_POINTS, seed=len(counts) + POINTS)
        best = min(best, found.flat_dim + why.hidden) if why.points else best
        causes = tuple((c.kind, c.count) for c in why.causes)
        if best == found.flat_dim:
            return Outcome("complete", found.flat_dim, best, detail)
        return Outcome("explained" if why.explained else "miss", found.flat_dim, best, detail, causes)
    return Outcome("complete", found.flat_dim, best)


def _hold_against_jacobian(
    found: Symmetries, model: nn.Module, args: tuple[Tensor, ...], *, seed: int
) -> tuple[FlatDirections, list[str]]:
    """Flat directions at one point, and claims that are wrong there.

    A false claim is wrong at almost every point; a point that is wrong by rounding alone, because a norm nearly
    vanishes there, is told from it by looking at another.
    """
    point = judgeable_parameters(model, args, {}, torch.Generator().manual_seed(seed))
    dims, span = count_generators(found, point)
    claims = [s for s in found if s.level == "function"]
    wrong = [f"{s.name}: claims {s.dim}, adds {d}" for s, d in zip(claims, dims, strict=True) if s.dim != d]
    counted = flat_directions(model, args, params=point, at_least=len(span), basis=True)
    if counted.reliable and counted.basis is not None and len(span):
        seen = span - span @ counted.basis.T @ counted.basis
        wrong += ["a generator changes the function"] if float(seen.norm()) > 1e-6 else []
    return counted, wrong


def _has_kinks(plan: Plan) -> bool:
    return any(b.act in {"relu", "leaky"} or b.kind == "pool" for b in plan.blocks)


def completeness(counts: Counter[str]) -> float | None:
    """Share of searches that find every flat direction, among those that ran and claimed nothing false."""
    return _share(counts, "complete")


def _share(counts: Counter[str], *good: str) -> float | None:
    judged = counts["complete"] + counts["explained"] + counts["miss"]
    return sum(counts[g] for g in good) / judged if judged else None


def _fails_alike(plan: Plan, verdict: str) -> bool:
    outcome = examine(plan).verdict
    return outcome == verdict or (verdict == "explained" and outcome == "miss")


def run_chunk(start: int, n: int, *, minimise: bool = True, explain: bool = True) -> dict[str, Any]:
    """Examine consecutive seeds.

    Args:
        start: first seed.
        n: how many.
        minimise: shrink every failure.
        explain: count misses at several points and look for their causes, which costs more than the search.

    Returns:
        Counts by verdict (of narrow plans apart), the failures, and the seconds of processor time.
    """
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    narrow: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    directions: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    begin = time.process_time()
    for seed in range(start, start + n):
        plan = random_plan(seed)
        outcome = examine(plan, seeds=None if explain else 1, explain=explain)
        if outcome.verdict in {"miss", "explained"}:
            for kind, count in outcome.causes or (("unknown", outcome.measured - outcome.claimed),):
                causes[kind] += 1
                directions[kind] += count
        counts[outcome.verdict] += 1
        narrow[outcome.verdict] += plan.narrow
        if outcome.verdict in {"miss", "explained", "false", "error"}:
            small = shrink(plan, lambda p, v=outcome.verdict: _fails_alike(p, v)) if minimise else plan
            shrunk = asdict(examine(small)) if minimise else None
            failures.append({"seed": seed, **asdict(outcome), "plan": str(small), "shrunk": shrunk})
    chunk = {
        "first_seed": start, "seeds": n, "counts": dict(counts), "narrow": dict(narrow), "causes": dict(causes),
        "directions": dict(directions), "failures": failures, "seconds": round(time.process_time() - begin, 1),
    }  # fmt: skip
    return dict(json.loads(json.dumps(chunk)))  # as it will be read again


def summarise(chunks: list[dict[str, Any]], version: str) -> dict[str, Any]:
    """The summary of all chunks so far.

    Args:
        chunks: results of `run_chunk`, in any order.
        version: of the code.

    Returns:
        Counts by verdict, completeness, failures in the order of seeds, and the chunks (without their failures).
    """
    chunks = sorted(chunks, key=lambda c: c["first_seed"])
    counts = sum((Counter(c["counts"]) for c in chunks), Counter[str]())
    narrow = sum((Counter(c["narrow"]) for c in chunks), Counter[str]())
    causes, directions = (sum((Counter(c[k]) for c in chunks), Counter[str]()) for k in ("causes", "directions"))
    return {
        "version": version,
        "torch": torch.__version__,
        "seeds": sum(c["seeds"] for c in chunks),
        "counts": dict(counts),
        "false_claims": counts["false"],
        "completeness": completeness(counts - narrow),
        "completeness_narrow": completeness(narrow),
        "complete_or_explained": _share(counts, "complete", "explained"),
        "causes": {k: {"plans": causes[k], "directions": directions[k]} for k in causes},
        "seconds": round(sum(c["seconds"] for c in chunks), 1),
        "chunks": [{k: v for k, v in c.items() if k != "failures"} for c in chunks],
        "failures": [f for c in chunks for f in c["failures"]],
    }


def run(
    start: int, n: int, *, minimise: bool = True, out: Path | None = None, budget: float = 1e9, jobs: int = 1,
    chunk: int = CHUNK, explain: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Examine many seeds; a run that was interrupted goes on where it stopped.

    Args:
        start: first seed.
        n: how many.
        minimise: shrink every failure.
        out: where the summary is, renewed after every chunk. Chunks that are in it already are not run again.
        budget: begin no chunk after so many seconds.
        jobs: processes.
        chunk: seeds in a chunk.
        explain: as for `run_chunk`.

    Returns:
        See `summarise`.

    Raises:
        ValueError: if ``out`` was written by another version of the code.
    """  # noqa: DOC502
    version = code_version()
    chunks: list[dict[str, Any]] = _read(out, version) if out is not None and out.exists() else []
    done = {seed for c in chunks for seed in range(c["first_seed"], c["first_seed"] + c["seeds"])}
    plan = [(s, min(chunk, start + n - s)) for s in range(start, start + n, chunk) if s not in done]
    begin = time.monotonic()

    def in_time() -> Iterator[Any]:
        for first, size in plan:
            if time.monotonic() - begin < budget:
                yield delayed(run_chunk)(first, size, minimise=minimise, explain=explain)

    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch=jobs, batch_size=1)
    for result in parallel(in_time()):
        chunks.append(result)
        if out is not None:
            _write(out, summarise(chunks, version))
    return summarise(chunks, version)


def code_version() -> str:
    """The commit, with "-dirty" if files have changed since."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    described = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return f"{gaugefix.__version__} {described}".strip()


def _read(path: Path, version: str) -> list[dict[str, Any]]:
    """The chunks of an earlier summary, with their failures."""
    summary = json.loads(path.read_text())
    if summary["version"] != version:
        raise ValueError(f"{path} was written by {summary['version']}, this is {version}: choose another --out.")
    return [
        {**c, "failures": [f for f in summary["failures"] if 0 <= f["seed"] - c["first_seed"] < c["seeds"]]}
        for c in summary["chunks"]
    ]


def _write(path: Path, summary: dict[str, Any]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(summary, file, indent=1)
    os.replace(file.name, path)


def main() -> None:
    """Parse arguments, run, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"), help="summary; an interrupted run goes on")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--no-causes", action="store_true", help="soundness only: misses are counted at one point")
    options = parser.parse_args()
    summary = run(
        options.start, options.n, minimise=not options.no_shrink, out=options.out, budget=options.budget,
        jobs=options.jobs, explain=not options.no_causes,
    )  # fmt: skip
    print(json.dumps({k: v for k, v in summary.items() if k not in {"failures", "chunks"}}, indent=1))
    for failure in summary["failures"]:
        print(*(failure[k] for k in ("verdict", "seed", "claimed", "measured", "detail", "causes")))
        print("   ", failure["plan"])


if __name__ == "__main__":
    main()
