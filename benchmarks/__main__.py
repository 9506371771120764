"""``python -m benchmarks [NAME …]``: run every script of this folder that has a function ``rows``, keep the results."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks.harness import Row, save

_NO_BENCHMARK = {
    "__main__",
    "decayed_classes",
    "forecast_problems",
    "harness",
    "pruning_methods",
    "problems",
    "pruning_problems",
}


def main(wanted: list[str]) -> int:
    """Run the benchmarks, print each table as it is ready; 1 if a target is missed, 2 for an unknown name."""
    known = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in _NO_BENCHMARK)
    if unknown := set(wanted) - set(known):
        Console(stderr=True).print(f"No benchmark {', '.join(sorted(unknown))}. There are: {', '.join(known)}.")
        return 2
    missed = False
    for name in wanted or known:
        rows = importlib.import_module(f"benchmarks.{name}").rows()
        Console().print(_table(name, rows), f"[dim]{save(name, rows)}[/]\n")
        missed |= any(row.met is False for row in rows)
    return int(missed)


def _table(name: str, rows: list[Row]) -> Table:
    table = Table(title=name, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column, justify in (("", "left"), ("measured", "right"), ("target", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        mark = {None: "", True: "[green]✓[/]", False: "[red]✗[/]"}[row.met]
        target = "" if row.target is None else f"≤ {row.target:g}"
        table.add_row(row.name, f"{row.value:.3g} {row.unit}", target, mark)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
