"""What a monitor remembers between steps, and how it is written down: tensors and plain values, never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gaugefix.errors import MeasurementError
from gaugefix.files import write_atomically
from gaugefix.monitor.events import Event
from gaugefix.monitor.law import Booked

STATE_VERSION = 1


@dataclass(eq=False)
class State:
    """The memory of a monitor.

    Attributes:
        count: steps so far.
        live: mask of the live units of every class, with hysteresis.
        near: mask of the units that lie on a mirror.
        ranks: of every class that has some.
        flags: balanced, violated and finite, by name; None is unknown.
        first: the first row.
        last: the last row, dear numbers of earlier rows kept.
        events: all of them.
        booked: what the step after ``booked_at`` must do to every charge.
        booked_at: step at which it was booked.
        after: sums of the weights one step later, not yet looked at.
    """

    count: int = 0
    live: dict[str, np.ndarray] = field(default_factory=dict)
    near: dict[str, np.ndarray] = field(default_factory=dict)
    ranks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    flags: dict[str, bool | None] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    booked: dict[str, Booked] = field(default_factory=dict)
    booked_at: int = -1
    after: torch.Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for ``torch.save`` with ``weights_only`` or safetensors.

        Returns:
            ``{"version", "plain", "tensors"}``.
        """
        tensors = {f"live/{k}": torch.from_numpy(v.copy()) for k, v in self.live.items()}
        tensors |= {f"near/{k}": torch.from_numpy(v.copy()) for k, v in self.near.items()}
        shifts = {}
        for name, booked in self.booked.items():
            shifts[name] = booked.shift
            for f in fields(booked):
                if f.name != "shift":
                    tensors[f"booked/{f.name}/{name}"] = torch.from_numpy(
                        np.array(getattr(booked, f.name), dtype=float)
                    )
        if self.after is not None:
            tensors["after"] = self.after.detach().cpu().clone()
        plain = {
            "count": self.count,
            "ranks": {k: list(v) for k, v in self.ranks.items()},
            "flags": dict(self.flags),
            "first": dict(self.first),
            "last": dict(self.last),
            "events": [{**vars(e), "units": list(e.units)} for e in self.events],
            "booked_at": self.booked_at,
            "shifts": shifts,
        }
        return {"version": STATE_VERSION, "plain": plain, "tensors": tensors}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> State:
        """The opposite of `to_dict`.

        Args:
            data: what it gave.

        Returns:
            The state.

        Raises:
            MeasurementError: if it is not the state of a monitor, or of a version that this one cannot read.
        """
        if not isinstance(data, Mapping) or not {"version", "plain", "tensors"} <= set(data):
            raise MeasurementError("Monitor: this is not the state of a monitor; pass what state_dict() gave.")
        if data["version"] != STATE_VERSION:
            raise MeasurementError(
                f"Monitor: the state has version {data['version']}, this gaugefix reads {STATE_VERSION}. "
                "Start a new monitor, or use the gaugefix that wrote it."
            )
        plain, tensors = data["plain"], data["tensors"]
        arrays = {k: v.cpu().numpy() for k, v in tensors.items()}
        state = cls(
            count=int(plain["count"]),
            live={k.partition("/")[2]: v for k, v in arrays.items() if k.startswith("live/")},
            near={k.partition("/")[2]: v for k, v in arrays.items() if k.startswith("near/")},
            ranks={k: tuple(v) for k, v in plain["ranks"].items()},
            flags=dict(plain["flags"]),
            first=dict(plain["first"]),
            last=dict(plain["last"]),
            events=[Event(**{**e, "units": tuple(e["units"])}) for e in plain["events"]],
            booked_at=int(plain["booked_at"]),
            after=tensors.get("after"),
        )
        names = [f.name for f in fields(Booked) if f.name != "shift"]
        for name, shift in plain["shifts"].items():
            state.booked[name] = Booked(**{f: arrays[f"booked/{f}/{name}"] for f in names}, shift=float(shift))
        return state


def write_state(path: str | Path, data: Mapping[str, Any]) -> Path:
    """Write a state as one safetensors file, its plain values as JSON in the header.

    Args:
        path: where to; whole or not at all.
        data: from `State.to_dict`.

    Returns:
        The absolute path.

    Raises:
        ReportError: if it cannot be written.
    """  # noqa: DOC502
    from safetensors.torch import save

    header = {"gaugefix_monitor": json.dumps({"version": data["version"], "plain": data["plain"]})}
    return write_atomically(path, save(dict(data["tensors"]), metadata=header))


def read_state(path: str | Path) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Args:
        path: the file.

    Returns:
        For `State.from_dict`.

    Raises:
        MeasurementError: if the file is missing or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["gaugefix_monitor"])
            return {**header, "tensors": {k: file.get_tensor(k) for k in file.keys()}}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise MeasurementError(f"Monitor: cannot read a state from {path}: {error}.") from error
