"""The end of a run in words: from the log of a monitor to diagnosis, evidence and next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gaugefix.advice import Advice, rank_advice
from gaugefix.monitor import Event, MonitorLog


def summarize(log: MonitorLog) -> tuple[Advice, ...]:
    """What a run has shown; works on a live monitor's log and on one read from a file.

    Args:
        log: from `gaugefix.monitor.Monitor.log` or `gaugefix.monitor.read_log`.

    Returns:
        Advice, the most urgent first; empty if nothing went wrong and nothing is worth knowing.

    Example:
        >>> dead = Event(100, "unit died", "0", 0.004, "unit 3 of 0 died; 7 of 8 are alive.", (3,))
        >>> log = MonitorLog(rows=[(0, {"0/live": 8.0}), (100, {"0/live": 7.0})], events=[dead])
        >>> summarize(log)[0].finding
        '1 of 8 units of 0 died during the run.'
    """
    out = [*_not_finite(log), *_law(log), *_changed(log)]
    names = [c["name"] for c in log.run.get("classes", ())] or _classes(log)
    for name in names:
        out += [*_dead(log, name), *_copies(log, name), *_rank(log, name)]
    out += _balance(log)
    return rank_advice(out)


def _classes(log: MonitorLog) -> list[str]:
    """Classes of which numbers were logged."""
    return [key.removesuffix("/live") for key in log.latest() if key.endswith("/live") and key != "units/live"]


def _of(log: MonitorLog, *kinds: str, where: str | None = None) -> list[Event]:
    return [e for e in log.events if e.kind in kinds and where in {None, e.where}]


def _ends(log: MonitorLog, key: str) -> tuple[float, float] | None:
    """First and last value of a number."""
    series = log.series(key)
    return (series[0][1], series[-1][1]) if series else None


def _total(log: MonitorLog, name: str) -> int:
    known = {c["name"]: int(c["units"]) for c in log.run.get("classes", ())}
    ends = _ends(log, f"{name}/live")
    return known.get(name, int(ends[0]) if ends else 0)


def _steps(events: list[Event]) -> str:
    first, last = events[0].step, events[-1].step
    return f"at step {first}" if first == last else f"from step {first} to {last}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _not_finite(log: MonitorLog) -> Iterator[Advice]:
    bad = _of(log, "not finite")
    if not bad:
        return
    good = _of(log, "finite again")
    over = len(good) >= len(bad)
    yield Advice(
        "info" if over else "act",
        "network",
        "Gradients or weights were not finite for some steps." if over else "Gradients or weights are not finite.",
        f"First {_steps(bad[:1])}: {bad[0].message}",
        "With a GradScaler a few such steps are usual." if over else
        "Go back to a checkpoint before that step and lower the learning rate, or clip gradients.",
    )  # fmt: skip


def _law(log: MonitorLog) -> Iterator[Advice]:
    bad = _of(log, "charge law violated")
    if bad:
        places = list(dict.fromkeys(e.where for e in bad))
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        yield Advice(
            "watch",
            places[0] if len(places) == 1 else "network",
            f"The law of the balance did not hold for {', '.join(places[:3])}{more}.",
            f"First {_steps(bad[:1])}: {bad[0].message}",
            "Call the monitor after clipping and give it the optimizer that steps; if that is so, the pair has no "
            "symmetry: find_symmetries(model, args, verify=True) tells.",
        )


def _changed(log: MonitorLog) -> Iterator[Advice]:
    for event in _of(log, "parameters changed")[-1:]:
        yield Advice(
            "watch", "network", "The model got other parameters during the run.",
            _sentence(f"{_steps([event])}: {event.message}"),
            "Find the symmetries again and make a new Monitor, so that the new parts are watched too.",
        )  # fmt: skip


def _dead(log: MonitorLog, name: str) -> Iterator[Advice]:
    ends = _ends(log, f"{name}/live")
    total = _total(log, name)
    if ends is None or ends[1] >= total:
        return
    dead, died = int(total - ends[1]), _of(log, "unit died", where=name)
    if not ends[1]:
        finding = f"Layer {name} has collapsed: all {total} units died."
    elif died:
        finding = f"{dead} of {total} units of {name} died during the run."
    else:
        finding = f"{dead} of {total} units of {name} were dead from the start."
    when = f" They died {_steps(died)}." if died else ""
    yield Advice(
        "watch" if ends[1] else "act",
        name,
        finding,
        f"Live units {ends[0]:.0f} at the first look, {ends[1]:.0f} at the last.{when}",
        "Lower the weight decay or the learning rate to keep them, or make the layer narrower: gaugefix.audit tells at "
        "which weight decay they die.",
    )


def _copies(log: MonitorLog, name: str) -> Iterator[Advice]:
    copies, distinct = _ends(log, f"{name}/duplicates"), _ends(log, f"{name}/distinct")
    if copies is None or distinct is None or not copies[1]:
        return
    events = _of(log, "mirror restored", where=name)
    when = f" First seen {_steps(events[:1])}." if events else ""
    yield Advice(
        "watch",
        name,
        f"{copies[1]:.0f} live unit{'s' * (copies[1] > 1)} of {name} add nothing: copies of others.",
        f"{distinct[1]:.0f} distinct units at the last look, {distinct[0]:.0f} at the first.{when}",
        f"A layer of {distinct[1]:.0f} units computes the same: make it narrower, or break the tie with a different "
        "initialisation.",
    )


def _rank(log: MonitorLog, name: str) -> Iterator[Advice]:
    fell = _of(log, "rank fell", where=name)
    if not fell:
        return
    last = fell[-1]
    yield Advice(
        "watch",
        name,
        f"{name} lost rank.",
        _sentence(f"{_steps(fell)}: {last.message}"),
        f"Factor it at rank {last.value:.0f}, or lower the weight decay to keep the directions.",
    )


def _balance(log: MonitorLog) -> Iterator[Advice]:
    state = Counter({e.where: 0 for e in log.events})
    for e in _of(log, "balance reached", "balance lost"):
        state[e.where] = 1 if e.kind == "balance reached" else -1
    reached = [name for name, on in state.items() if on > 0]
    if reached:
        events = [e for e in _of(log, "balance reached") if e.where in reached]
        yield Advice(
            "info",
            reached[0] if len(reached) == 1 else "network",
            f"{', '.join(reached[:3])}{f' and {len(reached) - 3} more' if len(reached) > 3 else ''} reached balance.",
            _sentence(f"{_steps(events)}: {events[-1].message}"),
            "Nothing to do: weight decay and gradient noise have made both sides equal.",
        )
