"""The command line: output, files, exit codes, and no traceback for what a user can mend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.conftest import Run

import gaugefix

TASK_FILE = """
import torch
from torch import nn
from gaugefix import Task

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

def make(seed=0, dead=False):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 4, generator=g)
    y = x[:, :3].argmax(1)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    if dead:
        with torch.no_grad():
            model[0].weight[0], model[0].bias[0], model[2].weight[:, 0] = 0, 0, 0
    return Task(model, loss, lambda: [(x, y)], lr=0.1, weight_decay=1e-3, batch_size=32, epochs=2, name="mine")

def make_dead():
    return make(dead=True)

def make_broken():
    return 3

def make_long():
    from dataclasses import replace
    from pathlib import Path
    task = make()

    def batches(seed=0):
        if seed == 100:
            Path("it-trains").touch()
        return task.batches()

    return replace(task, batches=batches, epochs=10**7)
"""


def write_log(path: Path) -> None:
    """The log of a run in which one unit died; the run goes on."""
    lines: list[dict[str, object]] = [
        {"type": "run", "step": 0, "classes": [{"name": "0", "title": "0", "units": 8}], "parameters": 51},
        {"type": "row", "step": 0, "values": {"0/live": 8, "loss": 1.1}},
        {"type": "row", "step": 50, "values": {"0/live": 7, "loss": 0.3}},
        {"type": "event", "step": 50, "kind": "unit died", "where": "0", "value": 0.01, "units": [3],
         "message": "unit 3 of 0 died; 7 of 8 are alive."},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class TestAudit:
    def test_tables_and_files(self, folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("audit", "my_task:make", "--quiet") == 0
        out, err = capsys.readouterr()
        assert out.index("Audit of mine") < out.index("What to do next") < out.index("audit.html")
        assert err == ""
        assert (folder / "audit.html").read_text().startswith("<!doctype html>")
        assert json.loads((folder / "audit.json").read_text())["task"]["epochs"] == 2

    def test_the_log_of_a_run(self, folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        event = {"step": 4, "kind": "unit died", "where": "0", "value": 0.1, "message": "M.", "units": [1]}
        (folder / "run.jsonl").write_text(json.dumps({"type": "event", **event}) + "\n")
        arguments = ("audit", "my_task:make", "--no-train", "--json", "-q", "--log")
        assert run(*arguments, "run.jsonl") == 0
        assert json.loads(capsys.readouterr().out)["run"]["events"] == [event]
        assert run(*arguments, "none.jsonl") == 2
        assert "Cannot read none.jsonl" in capsys.readouterr().err

    def test_single_precision_is_said(self, folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ("audit", "my_task:make", "--no-train", "--json", "-q")
        assert run(*arguments, "--precision", "single") == 0
        single = json.loads(capsys.readouterr().out)
        assert run(*arguments) == 0
        double = json.loads(capsys.readouterr().out)
        assert [note for note in single["notes"] if "float32" in note]
        assert not [note for note in double["notes"] if "float32" in note]
        assert single["noise"]["total"]["trace"] != double["noise"]["total"]["trace"]
        assert single["noise"]["total"]["trace"] == pytest.approx(double["noise"]["total"]["trace"], rel=1e-5)
        assert run(*arguments, "--precision", "half") == 2

    def test_json_is_alone_on_standard_output(self, folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("audit", "my_task:make", "--json", "--epochs", "1") == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["task"]["epochs"] == 1
        assert "Training" in err
        assert not list(folder.glob("audit.*"))

    def test_where_files_go(self, folder: Path, run: Run) -> None:
        arguments = ("audit", "my_task:make", "-q", "--no-train", "--out", "results/one", "--html", "page.html")
        assert run(*arguments) == 0
        assert (folder / "page.html").is_file()
        assert json.loads((folder / "results" / "one" / "audit.json").read_text())["task"]["epochs"] == 0
        assert not (folder / "results" / "one" / "audit.html").exists()

    @pytest.mark.parametrize(
        ("target", "options", "code"),
        [("make_dead", (), 0), ("make_dead", ("--strict",), 1), ("make", ("--strict",), 0)],
    )
    def test_strict(self, folder: Path, run: Run, target: str, options: tuple[str, ...], code: int) -> None:
        arguments = ("audit", f"my_task:{target}", "-q", "--no-train", *options)
        assert run(*arguments) == code
        assert (folder / "audit.json").is_file()  # a finding is no reason to write less

    @pytest.mark.parametrize("command", [("audit", "my_task:make_long"), ("reproduce", "2309.16932")])
    def test_a_folder_that_cannot_be_written_is_known_before_the_work(
        self,
        folder: Path,
        run: Run,
        capsys: pytest.CaptureFixture[str],
        command: tuple[str, ...],
    ) -> None:
        (folder / "file").write_text("")
        assert run(*command, "--out", "file") == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Choose another folder." in err
        assert not (folder / "it-trains").exists()


class TestUserErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("audit", "nope"), "error: Unknown task 'nope'. Built in: digits-mlp"),
            (("audit", "hf:no-such-model"), "hf:no-such-model"),
            (("audit", "my_task:make_broken"), "must return a gaugefix.Task, got int"),
            (("audit", "my_task:absent"), "has no function 'absent'"),
            (("audit", "mnist-mlp", "--data-dir", "nowhere"), "mnist.npz, which does not exist"),
            (("symmetries", "nope"), "Unknown task"),
            (("reproduce", "0000.00000"), "0000.00000"),
            (("cite", "0000.00000"), "0000.00000"),
            (("watch", "absent.jsonl"), "Cannot read absent.jsonl: No such file"),
            (("watch", "my_task.py", "--once"), "my_task.py is not the log of a monitor"),
        ],
    )
    def test_one_line_and_exit_code_2(
        self,
        folder: Path,
        run: Run,
        capsys: pytest.CaptureFixture[str],
        arguments: tuple[str, ...],
        message: str,
    ) -> None:
        assert run(*arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert message in err
        assert [p.name for p in folder.iterdir() if p.suffix in {".html", ".json"}] == []

    @pytest.mark.parametrize(
        "arguments",
        [
            ("audit",),
            ("audit", "digits-mlp", "--level", "deep"),
            ("audit", "digits-mlp", "--epochs", "-1"),
            ("audit", "digits-mlp", "--colour"),
            ("reproduce", "2309.16932", "--seeds", "0"),
            ("unknown",),
        ],
    )
    def test_usage(self, run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
        assert run(*arguments) == 2
        assert "Traceback" not in capsys.readouterr().err

    def test_names_are_not_read_as_markup(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("audit", "[/red]") == 2
        assert "'[/red]'" in capsys.readouterr().err


class TestOtherCommands:
    def test_symmetries(self, folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("symmetries", "my_task:make") == 0
        assert "6 flat directions of 51 parameters" in capsys.readouterr().out
        assert run("symmetries", "my_task:make", "--json") == 0
        assert json.loads(capsys.readouterr().out)["flat_dim"] == 6

    def test_symmetries_of_the_structure_with_a_page(
        self, folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ("symmetries", "my_task:make", "--meta", "--strict", "--html", "out/page.html")
        assert run(*arguments) == 0
        out = capsys.readouterr().out
        assert "no: structure only, on the meta device" in out
        assert str(folder / "out" / "page.html") in out.replace("\n", "")
        assert "6 directions of 51 parameters" in (folder / "out" / "page.html").read_text()

    def test_symmetries_complete(self, folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("symmetries", "my_task:make", "--complete") == 0
        assert "explains 6 of 6 flat directions" in capsys.readouterr().out

    def test_papers(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("papers", "--json") == 0
        known = json.loads(capsys.readouterr().out)
        assert len(known) == 45
        assert all(list(p) == ["id", "title", "status", "claims"] for p in known)
        assert run("papers") == 0
        assert "2309.16932" in capsys.readouterr().out

    def test_cite(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("cite", "2309.16932") == 0
        assert capsys.readouterr().out.startswith("@")

    @pytest.mark.parametrize(
        ("passed", "options", "code"), [(True, ("--strict",), 0), (False, ("--strict",), 1), (False, (), 0)]
    )
    def test_reproduce(
        self,
        run: Run,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        passed: bool,
        options: tuple[str, ...],
        code: int,
    ) -> None:
        """The study itself is tested with the studies; here only how its answer is passed on."""
        asked = {}

        class Result:
            def __init__(self) -> None:
                self.passed = passed

            def to_dict(self) -> dict[str, float]:
                return {"worst": float("nan")}

        def fake(paper: str, **settings: object) -> Result:
            asked.update(settings, paper=paper)
            settings["progress"](1, 2, "a claim")  # type: ignore[operator]
            return Result()

        monkeypatch.setattr("gaugefix.studies.reproduce", fake)
        assert run("reproduce", "2309.16932", "--seeds", "5", "--json", *options) == code
        assert json.loads(capsys.readouterr().out) == {"worst": None}
        assert (asked["paper"], asked["seeds"], asked["full"], asked["out"]) == ("2309.16932", 5, False, None)

    def test_watch_once(self, folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        write_log(folder / "run.jsonl")
        assert run("watch", "run.jsonl", "--once") == 0
        out = capsys.readouterr().out
        assert "7/8" in out
        assert "unit 3 of 0 died" in out
        assert run("watch", "run.jsonl", "--json") == 0
        state = json.loads(capsys.readouterr().out)
        assert (state["step"], state["finished"], state["values"]["0/live"]) == (50, False, 7)
        assert state["advice"][0]["finding"] == "1 of 8 units of 0 died during the run."

    @pytest.mark.parametrize(("severity", "code"), [("act", 1), ("watch", 0)])
    def test_watch_leaves_with_the_run(
        self,
        folder: Path,
        run: Run,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        severity: str,
        code: int,
    ) -> None:
        write_log(folder / "run.jsonl")
        advice = {"severity": severity, "where": "0", "finding": "F.", "evidence": "E.", "action": "A."}

        def sleep(seconds: float) -> None:  # while the view sleeps, the run ends
            assert seconds == 0.5
            with (folder / "run.jsonl").open("a") as file:
                file.write(json.dumps({"type": "summary", "advice": [advice]}) + "\n")

        monkeypatch.setattr("gaugefix.report.run_console.time.sleep", sleep)
        assert run("watch", "run.jsonl", "--seconds", "0.5", "--strict") == code
        assert "→ A." in capsys.readouterr().out

    def test_version(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--version") == 0
        assert capsys.readouterr().out == f"gaugefix {gaugefix.__version__}\n"

    @pytest.mark.parametrize("command", ["audit", "symmetries", "reproduce", "papers", "cite", "watch"])
    def test_every_help_has_an_example(self, run: Run, capsys: pytest.CaptureFixture[str], command: str) -> None:
        assert run(command, "--help") == 0
        assert f"Example: gaugefix {command}" in capsys.readouterr().out

    def test_no_command_shows_the_help(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run()
        shown = capsys.readouterr()
        assert "gaugefix audit digits-mlp" in shown.out + shown.err


@pytest.mark.long
def test_ctrl_c_is_clean(folder: Path) -> None:
    command = [sys.executable, "-m", "gaugefix", "audit", "my_task:make_long"]
    source = str(Path(gaugefix.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source, "PYTHONUNBUFFERED": "1"}
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    hears = [sys.executable, "-c", code, *command]  # a process started in the background would ignore the signal
    process = subprocess.Popen(hears, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "it-trains").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in out + err
    assert not list(folder.glob("audit.*"))
