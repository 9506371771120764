"""compress: impose, train, cut, fold, refit; a run that can be interrupted at any time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gaugefix.control.compression import steps
from gaugefix.control.compression.checkpoint import Checkpoint, load_checkpoint, own_generators, pack, unpack
from gaugefix.control.compression.constrain import Method, constrain
from gaugefix.control.compression.phases import Phase, Progress, Saver
from gaugefix.control.compression.plan import Plan, make_plan
from gaugefix.control.compression.records import CompressionResult, Stage
from gaugefix.control.folding import FoldResult
from gaugefix.control.folding.cost import forward_flops, forward_seconds, size_of
from gaugefix.control.folding.plain import plain_copy
from gaugefix.control.impose import CollapsedTensor, Ramp, collapse_, penalty, predict_steps
from gaugefix.files import check_writable
from gaugefix.task import Task
from gaugefix.training import make_optimizer

_RAMP, _ANNEAL = 0.2, 0.5  # parts of the constrained passes: the strength rises until, the learning rate falls from
_EFFECTIVE = 0.65  # mean of ramp × learning rate over the phase


def compress(
    task: Task,
    method: Method,
    strength: float,
    *,
    epochs: int | None = None,
    pretrain: int = 0,
    refit: int | None = None,
    keep: float | None = None,
    only: Sequence[str] | None = None,
    tolerance: float | None = None,
    factor_lr: float | None = None,
    checkpoint: Path | str | None = None,
    restart: bool = False,
    checkpoint_seconds: float = 60.0,
    run: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CompressionResult:
    """Train a model under a constraint until part of it dies, and return what is left as a smaller, plain model.

    1. ``pretrain`` passes without the constraint, if the model is not trained yet. This is "before".
    2. ``epochs`` passes with the penalty of ``method`` and the optimizer of the task; AdamW gets the penalty in the
       loss. The strength rises over the first fifth, the learning rate falls to zero over the second half.
    3. What died becomes exactly zero (`impose.collapse_`), or all but the largest part (``keep``), and is cut out
       (`fold`).
    4. ``refit`` passes of the smaller model without penalty and weight decay, zeros stay zero. The result is kept if
       its loss is lower.

    With a ``checkpoint`` the run can be interrupted. It is written every ``checkpoint_seconds``, at both ends of every
    phase, and on Ctrl-C or SIGTERM as soon as the present step is done, which then raises KeyboardInterrupt. The same
    call goes on from there, and ends bit for bit where a run without the interruption ends, given a task whose
    ``batches`` depend on their seed alone. The file has weights, optimizer and the generators of torch, numpy and
    Python, as safetensors with JSON in the head, and is written whole or not at all. It stays when the run is complete,
    so that the same call gives the same result at once; remove it when that is saved.

    Args:
        task: the model is left as it is.
        method: "units" (hidden units, channels and heads), "rank" (products with a rotation symmetry, matrices of
            Linear layers) or "sparse" (single weights).
        strength: λ ≥ 0 of the penalty; the factors get no weight decay of the task besides.
        epochs: passes with the constraint, by default those of the task.
        pretrain: passes before.
        refit: passes after, by default a quarter of ``epochs``, rounded up.
        keep: part of the units, singular values or weights to keep, the largest of all layers together; by default
            those that did not die.
        only: names of classes of units or of tensors to be constrained, instead of all.
        tolerance: what counts as zero when folding, as in `fold`.
        factor_lr: learning rate of the factors, by default that of the task.
        checkpoint: path of the file; None for none.
        restart: ignore a checkpoint that is there.
        checkpoint_seconds: between two checkpoints; 0 for one after every step.
        run: name of the run, which a checkpoint must agree with; by default that of the task.
        seed: of the order of the batches and of the global generators within the run.
        progress: called with (phase, passes done, passes in all, note).

    Returns:
        The smaller model and the numbers before and after.

    Raises:
        ControlError: if an argument is out of range, nothing can be constrained, the optimizer is not one of the
            task's, or the checkpoint belongs to another run. Nothing has been written then.
        TaskError: if the loss stops being finite; the last checkpoint stays.

    Source: arXiv 2309.16932 and 2210.01212 (constraints by symmetry), 2502.05300 (reduction).

    Example:
        >>> from gaugefix import load_task
        >>> done = compress(load_task("digits-mlp"), "units", 0.02, keep=0.5, epochs=40, pretrain=20)
        >>> [s.name for s in done.stages]
        ['before', 'constrained', 'cut', 'folded', 'refitted']
        >>> done.parameters[1] < done.parameters[0]
        True
    """  # noqa: DOC502
    plan = make_plan(task, method, strength, epochs, pretrain, refit, keep, only, tolerance, factor_lr, run, seed)
    path = None if checkpoint is None else Path(checkpoint).expanduser().absolute()
    if path is not None:
        check_writable(path)
    report = progress or (lambda *_: None)
    with own_generators(seed):
        return _Run(task, plan, path, restart, checkpoint_seconds, report).go()


class _Run:
    """One compression, phase by phase; every phase starts where a checkpoint left it."""

    def __init__(
        self, task: Task, plan: Plan, path: Path | None, restart: bool, seconds: float, progress: Progress
    ) -> None:
        self.task, self.plan, self.path, self.seconds, self.progress = task, plan, path, seconds, progress
        self.args = task.inputs(task.first_batch())
        self.settings = {**vars(plan), "shapes": {n: list(p.shape) for n, p in task.model.named_parameters()}}
        self.stages: list[Stage] = []
        self.losses: dict[str, tuple[float, ...]] = {}
        self.collapsed: tuple[CollapsedTensor, ...] = ()
        self.kept: dict[str, Tensor] = {}  # tensors of an earlier phase that later ones need
        self.notes: list[str] = []
        self.found = load_checkpoint(path, self.settings) if path is not None and not restart else None
        self.steps = sum(1 for _ in task.batch_iter(plan.seed))

    def go(self) -> CompressionResult:
        """All phases, those left out that are done."""
        trial = copy.deepcopy(self.task.model)  # whether anything can be constrained is known before any training
        constrain(trial, self.args, self.plan.method, self.plan.strength, self.plan.only)
        del trial
        start = self.found.state["phase"] if self.found is not None else "dense"
        model = copy.deepcopy(self.task.model)
        if self.found is not None:
            self._recall(self.found)
        if start == "dense":
            model = self._dense(model)
            start = "constrained"
        model, left = self._constrained(model, done=start != "constrained")
        folded, failure = self._folded(model, done=start == "refit")
        final = self._refitted(folded)
        return self._result(final, folded, {**left, **folded.skipped}, failure)

    # phases

    def _dense(self, model: nn.Module) -> nn.Module:
        task = replace(self.task, model=model)
        phase = Phase("dense", task, make_optimizer(task), self.plan.pretrain, self.steps, self.plan.seed)
        self._train(phase)
        self._stage("before", model)
        return model

    def _constrained(self, model: nn.Module, *, done: bool) -> tuple[nn.Module, dict[str, str]]:
        plan = self.plan
        self.names, left = constrain(model, self.args, plan.method, plan.strength, plan.only)
        task = replace(self.task, model=model)
        optimizer, coupled = steps.penalised(task, plan.factor_lr)
        ramp = Ramp(optimizer if coupled else None, steps=max(round(_RAMP * plan.epochs * self.steps), 1))
        total = plan.epochs * self.steps
        phase = Phase(
            "constrained", task, optimizer, plan.epochs, self.steps, plan.seed + plan.pretrain, anneal=_ANNEAL,
            before_step=lambda share: ramp.load_state_dict({"done": round(share * total)}),
            penalty=None if coupled else lambda: penalty(model, scale=ramp.value),
        )  # fmt: skip
        if coupled:
            self._foresee(model, optimizer, total)
        else:
            self.notes.append("AdamW decouples weight decay, so the penalty is part of the loss.")
        if not done:
            self._train(phase)
            self._stage("constrained", model)
            model.zero_grad(set_to_none=True)
        return model, left

    def _folded(self, model: nn.Module, *, done: bool) -> tuple[FoldResult, str]:
        """What died, cut out; the values of the collapsed model are kept, so that this can be done again."""
        if done:
            plain = plain_copy(model)
            plain.load_state_dict({n.removeprefix("collapsed/"): t for n, t in self.kept.items()})
        else:
            self.collapsed = collapse_(
                model, None if self.plan.keep is None else steps.threshold(model, self.plan.keep)
            )
            plain = model
            self._stage("cut", plain)
            self.kept = {f"collapsed/{n}": t.clone() for n, t in plain.state_dict().items()}
        self.progress("fold", 0, 1, "")
        result, failure = steps.folded(replace(self.task, model=plain.eval()), self.plan)
        self.progress("fold", 1, 1, f"{result.parameters[1]:,} parameters")
        if not done:
            self._stage("folded", result.model)
        return result, failure

    def _refitted(self, folded: FoldResult) -> nn.Module:
        if not self.plan.refit:
            return folded.model
        model = copy.deepcopy(folded.model)
        task = replace(self.task, model=model, weight_decay=0.0)
        zeros = [(p, p.detach() != 0) for p in model.parameters() if self.plan.method == "sparse" and p.ndim > 1]

        def keep_zeros() -> None:
            with torch.no_grad():
                for p, mask in zeros:
                    p.mul_(mask)

        seed = self.plan.seed + self.plan.pretrain + self.plan.epochs
        phase = Phase(
            "refit", task, make_optimizer(task), self.plan.refit, self.steps, seed, anneal=0.0, after_step=keep_zeros
        )  # fmt: skip
        self._train(phase)
        self._stage("refitted", model)
        if self.stages[-1].loss <= self.stages[-2].loss:
            return model
        self.notes.append("The refit did not lower the loss; the folded model was kept as it was.")
        return folded.model

    def _train(self, phase: Phase) -> None:
        if self.found is not None:
            phase.load(self.found.state["run"], self.found.tensors)
            self.found = None
        save = None if self.path is None else self._saving(phase)
        saver = Saver(save, self.seconds)
        with saver.listening():
            if save is not None:
                save()
            phase.run(saver, self.progress)
            if save is not None:
                save()
        self.losses[phase.name] = tuple(phase.position.losses)
        phase.model.zero_grad(set_to_none=True)

    # checkpoints

    def _saving(self, phase: Phase) -> Callable[[], None]:
        def save() -> None:
            tensors = dict(self.kept)
            state = {
                "phase": phase.name,
                "run": phase.save(tensors),
                "stages": [s.to_dict() for s in self.stages],
                "losses": self.losses,
                "collapsed": pack(tensors, "records", {"all": [vars(c) for c in self.collapsed]}),
                "kept": sorted(self.kept),
            }
            if self.path is not None:
                Checkpoint(self.settings, state, tensors).save(self.path)

        return save

    def _recall(self, found: Checkpoint) -> None:
        self.stages = [Stage(**s) for s in found.state["stages"]]
        self.losses = {k: tuple(v) for k, v in found.state["losses"].items()}
        records = unpack(found.tensors, found.state["collapsed"])["all"]
        self.collapsed = tuple(CollapsedTensor(**r) for r in records)
        self.kept = {name: found.tensors[name] for name in found.state["kept"]}

    # numbers

    def _stage(self, name: str, model: nn.Module) -> None:
        """Evaluate; the mode is as before."""
        training = model.training
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self.task.batch_iter(0):
                losses = self.task.loss(model, batch)
                total, count = total + float(losses.sum()), count + len(losses)
            metric = {k: float(v) for k, v in self.task.metric(model).items()} if self.task.metric is not None else {}
            plain = plain_copy(model)
            nonzero = sum(int((p != 0).sum()) for p in plain.parameters())
        model.train(training)
        self.stages.append(Stage(name, total / count, metric, size_of(plain)[0], nonzero))

    def _foresee(self, model: nn.Module, optimizer: torch.optim.Optimizer, total: int) -> None:
        """A note if the run is too short for anything to die."""
        if self.plan.keep is not None:
            return
        need = [f.steps for f in predict_steps(model, optimizer) if f.valid and math.isfinite(f.steps)]
        if need and max(need) > total * _EFFECTIVE:
            passes = math.ceil(max(need) / _EFFECTIVE / self.steps)
            self.notes.append(
                f"What dies needs about {passes:,} passes at this strength and learning rate to be far below the rest; "
                f"these were {self.plan.epochs:,}. Train longer, or raise the strength."
            )

    def _result(self, final: nn.Module, folded: FoldResult, left: dict[str, str], failure: str) -> CompressionResult:
        dense = plain_copy(self.task.model).eval()
        final = final.eval()
        seconds = forward_seconds([dense, final], self.args)
        (p0, b0), (p1, b1) = size_of(dense), size_of(final)
        unclear = [c.name for c in self.collapsed if not c.clear]
        if unclear:
            self.notes.append(
                f"No clear gap between what died and what lives in {', '.join(unclear[:5])}"
                f"{f' and {len(unclear) - 5} more' if len(unclear) > 5 else ''}: train longer, or raise the strength."
            )
        if failure:
            self.notes.append(failure)
        if self.plan.keep is not None and any(c.kind == "none" for c in self.collapsed):
            self.notes.append(
                "keep is about matrices alone; of products, folding takes what lies below the widest gap."
            )
        first, last = self.stages[0], self.stages[4 if len(self.stages) > 4 and final is not folded.model else 3]
        return CompressionResult(
            final, self.task.name, self.plan.method, self.plan.strength, tuple(self.stages), self.names, left,
            self.collapsed, folded.removed, folded.factored, folded.error, (p0, p1), (first.nonzero, last.nonzero),
            (b0, b1), (forward_flops(dense, self.args), forward_flops(final, self.args)), (seconds[0], seconds[1]),
            seconds[0] / seconds[1], self.losses, tuple(self.notes), folded.changes,
        )  # fmt: skip
