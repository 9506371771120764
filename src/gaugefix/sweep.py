"""Grids of runs: as one batch, with joblib on this machine, or with Ray on a cluster.

Every cell is a file, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gaugefix.errors import SweepError
from gaugefix.files import check_writable, write_atomically

Backend = Literal["sequential", "batched", "joblib", "ray"]
Cell = dict[str, Any]
Run = Callable[..., Mapping[str, Any]]
Progress = Callable[[int, int], None]

#: runs that Ray gets at once
_PIECE = 256
_BACKENDS = ("sequential", "batched", "joblib", "ray")


@dataclass(frozen=True)
class CellResult:
    """One run.

    Attributes:
        cell: its settings, the seed included.
        values: what the run returned.
        seconds: wall-clock time; of a batch, its share.
    """

    cell: Cell
    values: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """All runs of a grid.

    Attributes:
        axes: the values of every axis, in the order of the grid; "seed" is the last.
        results: one entry per cell, in the order of the product of the axes.
        reused: how many were there already.
    """

    axes: dict[str, tuple[Any, ...]]
    results: tuple[CellResult, ...]
    reused: int

    def array(self, key: str) -> np.ndarray:
        """One value of every run on the grid.

        Args:
            key: of the mapping that the runs return.

        Returns:
            ``(*lengths of the axes, *shape of the value)``.

        Raises:
            SweepError: if a run did not return the key.
        """
        known = self.results[0].values
        if any(key not in r.values for r in self.results):
            raise SweepError(f"No value {key!r} in every run; there are {', '.join(sorted(known))}.")
        stacked = np.array([r.values[key] for r in self.results])
        return stacked.reshape(*(len(v) for v in self.axes.values()), *stacked.shape[1:])


def sweep(
    run: Run,
    grid: Mapping[str, Sequence[Any]],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    out: Path | str | None = None,
    backend: Backend = "sequential",
    jobs: int = -1,
    progress: Progress | None = None,
) -> Sweep:
    """Run a function on every cell of a grid and for every seed.

    Args:
        run: ``run(seed=..., **cell)`` returns a mapping of plain values (numbers, lists, text). With
            ``backend="batched"`` it is called once, ``run(cells)`` with all missing cells (dictionaries with "seed"),
            and returns one mapping for each, in the same order: the whole phase diagram as one tensor.
        grid: axis -> its values; anything JSON can hold.
        seeds: of the runs of every cell.
        out: folder for one JSON file per cell. Cells that are there already (same function, same settings) are not
            run again; half-written files cannot occur.
        backend: "sequential"; "batched"; "joblib", processes on this machine; "ray", the same through the Ray cluster
            that is running, or a local one (needs the extra ``ray``).
        jobs: processes of joblib; -1 is one for each core.
        progress: called with (runs done, runs in all).

    Returns:
        The results in the order of the grid.

    Raises:
        SweepError: if an argument does not fit, or after all other cells were run, if some failed; what succeeded is
            kept in ``out``.
        ReportError: if nothing can be written to ``out``.

    Example:
        >>> found = sweep(lambda x, seed: {"y": 10 * x + seed}, {"x": [1, 2, 3]}, seeds=[0, 5])
        >>> found.array("y").tolist()
        [[10, 15], [20, 25], [30, 35]]
    """  # noqa: DOC502
    axes = _axes(grid, seeds, backend)
    cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    folder = None if out is None else Path(out).expanduser()
    if folder is not None:
        check_writable(folder / "cell.json")
    store = _Store(folder, f"{run.__module__}.{run.__qualname__}" if hasattr(run, "__qualname__") else repr(type(run)))
    done = {i: kept for i, cell in enumerate(cells) if (kept := store.load(cell)) is not None}
    reused = len(done)
    missing = [i for i in range(len(cells)) if i not in done]
    failures: list[str] = []
    for i, outcome in _outcomes(run, cells, missing, backend, jobs):
        if isinstance(outcome, str):
            failures.append(f"{cells[i]}: {outcome}")
            continue
        store.save(outcome)
        done[i] = outcome
        if progress is not None:
            progress(len(done), len(cells))
    if failures:
        kept_in = f"; the other {len(done)} are in {folder}" if folder is not None else ""
        shown = "\n  ".join(failures[:5])
        raise SweepError(f"{len(failures)} of {len(cells)} runs failed{kept_in}. The first of them:\n  {shown}")
    return Sweep(axes, tuple(done[i] for i in range(len(cells))), reused)


def _axes(grid: Mapping[str, Sequence[Any]], seeds: Sequence[int], backend: str) -> dict[str, tuple[Any, ...]]:
    if backend not in _BACKENDS:
        raise SweepError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}.")
    if "seed" in grid:
        raise SweepError("The grid has an axis 'seed'; give the seeds as the argument seeds.")
    axes = {name: tuple(values) for name, values in grid.items()} | {"seed": tuple(seeds)}
    if empty := [name for name, values in axes.items() if not values]:
        raise SweepError(f"Axis {empty[0]!r} has no values.")
    try:
        json.dumps(axes)
    except TypeError as error:
        raise SweepError(f"The values of the grid must be numbers, text, lists or None: {error}.") from error
    return axes


def _outcomes(
    run: Run, cells: list[Cell], missing: list[int], backend: Backend, jobs: int
) -> Iterator[tuple[int, CellResult | str]]:
    """Results as they come, or what went wrong."""
    if backend == "batched":
        yield from _batched(run, cells, missing)
        return
    if backend == "sequential" or not missing:
        yield from ((i, _one(run, cells[i])) for i in missing)
        return
    from joblib import Parallel, delayed

    if backend == "joblib":
        workers = Parallel(n_jobs=jobs, return_as="generator_unordered")
        yield from workers(delayed(_numbered)(run, i, cells[i]) for i in missing)
        return
    with _ray():  # this backend gives results only when all are there: in pieces, so that a kill loses one piece
        for start in range(0, len(missing), _PIECE):
            yield from Parallel(n_jobs=jobs)(
                delayed(_numbered)(run, i, cells[i]) for i in missing[start : start + _PIECE]
            )


def _numbered(run: Run, i: int, cell: Cell) -> tuple[int, CellResult | str]:
    return i, _one(run, cell)


def _one(run: Run, cell: Cell) -> CellResult | str:
    started = time.perf_counter()
    try:
        values = _plain(run(**cell))
    except Exception as error:  # one bad cell must not lose the others
        return f"{type(error).__name__}: {error}"
    return CellResult(cell, values, time.perf_counter() - started)


def _batched(run: Run, cells: list[Cell], missing: list[int]) -> Iterator[tuple[int, CellResult | str]]:
    if not missing:
        return
    started = time.perf_counter()
    values = [_plain(v) for v in run([dict(cells[i]) for i in missing])]
    if len(values) != len(missing):
        raise SweepError(f"The batched run got {len(missing)} cells and returned {len(values)} results.")
    share = (time.perf_counter() - started) / len(missing)
    yield from ((i, CellResult(cells[i], v, share)) for i, v in zip(missing, values, strict=True))


def _plain(values: Any) -> dict[str, Any]:
    """As JSON would give it back, so that a resumed sweep returns the same as an uninterrupted one."""
    if not isinstance(values, Mapping):
        raise SweepError(f"A run must return a mapping of names to values, got {type(values).__name__}.")
    plain = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in values.items()}
    return dict(json.loads(json.dumps(plain)))


@contextmanager
def _ray() -> Iterator[None]:
    """Joblib's backend of Ray, from https://docs.ray.io/en/latest/ray-more-libs/joblib.html."""
    try:
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise SweepError("backend='ray' needs Ray: pip install 'gaugefix[ray]'.") from error
    from joblib import parallel_config

    register_ray()
    with parallel_config(backend="ray"):
        yield


class _Store:
    """One JSON file per cell, named by the hash of function and settings."""

    def __init__(self, folder: Path | None, function: str) -> None:
        self.folder = folder
        self.function = function

    def path(self, cell: Cell) -> Path | None:
        if self.folder is None:
            return None
        key = json.dumps([self.function, cell], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def load(self, cell: Cell) -> CellResult | None:
        path = self.path(cell)
        if path is None or not path.exists():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SweepError(f"{path} is not a result of a sweep: {error}. Move it away.") from error
        return CellResult(cell, data["values"], data["seconds"])

    def save(self, result: CellResult) -> None:
        path = self.path(result.cell)
        if path is not None:
            data = {"function": self.function, "cell": result.cell, "values": result.values, "seconds": result.seconds}
            write_atomically(path, json.dumps(data, indent=1) + "\n")
