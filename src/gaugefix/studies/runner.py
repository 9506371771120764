"""Run a study: every claim on its own, what fails is shown, what is done is kept."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch

from gaugefix.errors import StudyError
from gaugefix.files import check_writable
from gaugefix.studies.framework import Claim, Comparison, Setting, compare
from gaugefix.studies.registry import Study, find_paper, find_study
from gaugefix.studies.results import StudyResult, stored_comparisons
from gaugefix.threads import one_thread

Progress = Callable[[int, int, str], None]


def reproduce(
    id: str,
    *,
    full: bool = False,
    seeds: int = 3,
    out: Path | str | None = None,
    progress: Progress | bool | None = None,
) -> StudyResult:
    """Run the study of a paper and compare what it predicts with what is measured.

    Args:
        id: arXiv identifier.
        full: the sizes of the paper instead of the quick ones (≤ 60 s on two cores).
        seeds: every claim is measured for seeds 0, …, seeds − 1; three or more give an error bar worth the name.
        out: folder for ``<id>.json``, ``.svg`` and ``.png``, written after every claim. A later run with the same
            setting and the same code takes over the claims that passed.
        progress: True for a progress bar on standard error, or a function that is called with
            ``(claims done, claims in all, name of the next claim)``, at the end with "".

    Returns:
        The result; look at ``.passed``, print ``.table()``, draw ``.figure()``.

    Raises:
        StudyError: if the paper is unknown or has no study yet, ``seeds`` is not a positive integer, or ``out`` is
            given and matplotlib is not installed.
        ReportError: if nothing can be written to ``out``.

    Example:
        >>> reproduce("2309.1693")
        Traceback (most recent call last):
        ...
        gaugefix.errors.StudyError: Unknown paper '2309.1693'. Did you mean 2309.16932 (Symmetry Induces ...
    """  # noqa: DOC502
    study = find_study(id)
    if not isinstance(seeds, int) or seeds < 1:
        raise StudyError(f"seeds must be an integer >= 1, got {seeds!r}; the default is 3.")
    setting = Setting(tuple(range(seeds)), full)
    if progress is True:
        with _progress_bar() as bar:
            return run_study(study, setting, out=out, progress=bar)
    return run_study(study, setting, out=out, progress=progress or None)


def run_study(
    study: Study, setting: Setting, *, out: Path | str | None = None, progress: Progress | None = None
) -> StudyResult:
    """`reproduce` for a `Study` object, registered or not.

    Args:
        study: what to run.
        setting: seeds and size.
        out: as in `reproduce`.
        progress: as in `reproduce`.

    Returns:
        The result.

    Raises:
        StudyError: if ``out`` is given and matplotlib is not installed.
        ReportError: if nothing can be written to ``out``.
    """  # noqa: DOC502
    claims, paper = study.claims, find_paper(study.id)
    if out is not None:
        _check_output(Path(out) / f"{study.id}.json")
    source_hash = hashlib.sha256(_package_source() + study.source.encode()).hexdigest()[:16]
    kept = stored_comparisons(Path(out) / f"{study.id}.json", setting, source_hash) if out is not None else {}
    comparisons: list[Comparison] = []
    result = StudyResult(paper, study, setting, (), _environment(), source_hash)
    for done, claim in enumerate(claims):
        if progress is not None:
            progress(done, len(claims), claim.name)
        old = kept.get(claim.name)
        unchanged = old is not None and (old.statement, old.tolerance) == (claim.statement, claim.tolerance)
        comparisons.append(old if old is not None and unchanged else run_claim(claim, setting))
        result = StudyResult(paper, study, setting, tuple(comparisons), _environment(), source_hash)
        if out is not None:
            result.save(out, figure=done == len(claims) - 1)
    if progress is not None:
        progress(len(claims), len(claims), "")
    return result


def run_claim(claim: Claim, setting: Setting) -> Comparison:
    """Measure one claim. An exception becomes a failed comparison that says what happened.

    It runs on one thread. The global random state of torch and numpy and torch's default dtype are as before, whatever
    the claim does.

    Args:
        claim: what to measure.
        setting: seeds and size.

    Returns:
        The comparison, with ``error`` set if it could not be measured.
    """
    start = time.perf_counter()
    numpy_state, dtype = np.random.get_state(), torch.get_default_dtype()  # noqa: NPY002
    try:
        with one_thread(), torch.random.fork_rng(devices=[]):
            evidence = claim.measure(setting)
        return compare(claim, evidence, time.perf_counter() - start, n_seeds=len(setting.seeds))
    except Exception as error:
        return Comparison(
            name=claim.name,
            statement=claim.statement,
            tolerance=claim.tolerance,
            unit=claim.unit,
            seconds=time.perf_counter() - start,
            error=f"{type(error).__name__}: {error}",
        )
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_default_dtype(dtype)


def _check_output(path: Path) -> None:
    """Know before the first claim is measured that the results can be drawn and written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise StudyError("The figure of a study needs matplotlib: pip install 'gaugefix[examples]'.")
    check_writable(path)


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    """A bar on standard error that disappears when the study is done."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


@cache
def _package_source() -> bytes:
    """All code that a measurement can depend on."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return b"".join(file.read_bytes() for file in files)


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
