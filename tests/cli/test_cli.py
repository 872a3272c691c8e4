"""The command line: what it prints, what it returns, and that it never shows a traceback for a mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import multibackend as mb
from multibackend.cli.main import main
from multibackend.cli.tables import backend_blocks
from multibackend.core.text import write_text
from multibackend.protocol.registry import BackendInfo

EXPERIMENT = '''
"""A line, for the tests of the command line."""
import numpy as np
import multibackend as mb

UPDATES = 6

def build_torch():
    import torch
    return torch.nn.Linear(2, 1)

def build_flax(rngs):
    from flax import nnx
    return nnx.Linear(2, 1, rngs=rngs)

def experiment(*, learning_rate: float = 0.1, micro_batch_size: int = 2, broken: bool = False) -> mb.Experiment:
    """A line.

    Args:
        learning_rate: of SGD.
        micro_batch_size: examples per micro-batch.
        broken: let the loss of one backend be another.
    """
    x = np.random.default_rng(0).normal(size=(20, 2))
    data = {"x": x, "y": x @ np.array([[1.0], [2.0]])}
    square = lambda outputs, batch: (outputs - batch["y"]) ** 2
    wrong = lambda outputs, batch: 1.1 * (outputs - batch["y"]) ** 2
    return mb.Experiment(
        name="line",
        model=mb.Model(torch=build_torch, jax=build_flax, inputs="x"),
        loss=mb.losses.Custom({"torch": square, "jax": wrong if broken else square}),
        optimizer=mb.optimizers.SGD(learning_rate=learning_rate),
        train_data=data,
        eval_data=data,
        metrics=(mb.metrics.MeanAbsoluteError(target="y"),),
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=2,
    )

def after(trainer):
    print(f"after {len(trainer.parameters())} parameters")
'''


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "line.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_train_writes_log_and_weights_that_evaluate_reads_on_either_backend(
    backend: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `train` prints as held-out metrics is what `evaluate` finds for its weights, on both backends."""
    run_dir = tmp_path / "run"
    arguments = ["train", file, "--backend", backend, "--learning-rate", "0.05", "--run-dir", str(run_dir)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    held_out = next(line for line in printed.splitlines() if line.startswith("held-out: ")).removeprefix("held-out: ")
    assert "after 2 parameters" in printed
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    updates = [line["record"] for line in lines if line["event"] == "UpdateFinished"]
    assert [update["update"] for update in updates] == [1, 2, 3, 4, 5, 6]
    assert {update["learning_rate"] for update in updates} == {0.05}
    assert load_file(run_dir / "weights.safetensors")["weight"].shape == (1, 2)
    for other in ("torch", "jax"):
        assert main(["evaluate", file, "--backend", other, "--run-dir", str(run_dir)]) == 0
        assert held_out in capsys.readouterr().out


def test_compare_says_that_the_runs_match(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses of each update, the largest difference, the tolerance with its reason, the verdict; exit code 0."""
    assert main(["compare", file, "--precision", "float64", "--updates", "5", "--micro-batch-size", "3"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for phrase in (
        "update torch loss jax loss difference",
        "The runs match.",
        "parameters 1e-09",
        "Why: float64 rounds",
    ):
        assert phrase in printed


def test_compare_exits_1_where_the_runs_part(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss that is 10 % off on one backend is found at the first update."""
    assert main(["compare", file, "--precision", "float64", "--updates", "3", "--broken"]) == 1
    assert "do NOT match. First divergence: loss: loss at update 1" in " ".join(capsys.readouterr().out.split())


def test_compare_writes_a_page(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--html` writes the report and prints where; the page holds the command line; the exit code is the verdict."""
    pytest.importorskip("plotly.offline", reason="the extra 'html' is not installed")
    page = tmp_path / "pages of runs" / "parity.html"
    arguments = ["compare", file, "--precision", "float64", "--updates", "3", "--broken", "--html", str(page)]
    assert main(arguments) == 1
    assert f"The report as a page: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    command = f"multibackend compare {file} --precision float64 --updates 3 --broken --html"
    assert f"{command} &#39;{page}&#39;</code>" in text
    assert "✗ The runs part at update 1: loss." in text


def test_compare_refuses_a_page_that_cannot_be_written_before_it_trains(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory in place of a file, and a missing package, are told at once, with exit code 2."""
    pytest.importorskip("plotly.offline", reason="the extra 'html' is not installed")
    assert main(["compare", file, "--html", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "it is a directory; give the name of a file" in printed.err
    assert "loss" not in printed.out
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main(["compare", file, "--html", str(tmp_path / "parity.html")]) == 2
    assert "pip install 'multibackend[html]'" in capsys.readouterr().err


def test_check_finds_that_micro_batches_equal_a_batch(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` runs on every backend that the model has."""
    assert main(["check", file]) == 0
    printed = capsys.readouterr().out
    assert "torch: 2 × 2 micro-batches equal one batch of 4" in " ".join(printed.split())
    assert "jax: 2 × 2" in printed


def test_backends_lists_both(capsys: pytest.CaptureFixture[str]) -> None:
    """Each registered backend has a row."""
    assert main(["backends"]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["jax", "yes"], ["stub", "yes"], ["torch", "yes"]]


def test_a_backend_that_is_not_installed_comes_with_its_whole_command() -> None:
    """However narrow the window: a command that is cut cannot be copied."""
    install = "pip install 'multibackend[jax]'"
    info = BackendInfo("jax", False, "", ("scan", "dispatch"), frozenset({"memory"}), install)
    assert f"jax is not installed; run: {install}" in write_text(backend_blocks([info]), width=20).splitlines()


def test_bare_it_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 2; `--version` tells the version."""
    assert main([]) == 2
    printed = capsys.readouterr().out
    for command in ("train", "resume", "compare", "evaluate", "report", "backends", "completion"):
        assert f"\n    {command} " in printed or f"\n    {command}\n" in printed
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"multibackend {mb.__version__}\n"
    with pytest.raises(SystemExit) as stop:
        main(["backends", "--nothing"])
    assert stop.value.code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell's script names them; its syntax is checked where the shell is installed."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("compare", "report", "run-dir", "save-every"):
        assert word in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    """Commands first, then the flags of the command."""
    if not shutil.which("bash"):
        pytest.skip("bash is not installed")
    main(["completion", "bash"])
    script = capsys.readouterr().out
    for words, completed in ((["comp"], {"compare", "completion"}), (["train", "--save-e"], {"--save-every"})):
        typed = f"COMP_WORDS=(multibackend {' '.join(words)}); COMP_CWORD={len(words)}; _multibackend"
        code = f'{script}\n{typed}; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == completed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nowhere.py"], "there is no file 'nowhere.py'"),
        (["resume", "nowhere"], "there is no directory 'nowhere'"),
        (["report", "nowhere"], "there is no directory 'nowhere'"),
        (["train", "FILE", "--nothing", "1"], "has a flag --nothing"),
        (["evaluate", "FILE", "--run-dir", "nowhere"], "there are no weights at 'nowhere'"),
        (["convert", "FILE", "--weights", "nowhere", "--output", "x"], "there are no weights at 'nowhere'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_imported(
    arguments: list[str], words: str, file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the library nor a framework: such a mistake is told in a fraction of a second."""
    monkeypatch.setitem(sys.modules, "multibackend.cli.commands", None)  # so that importing it fails
    monkeypatch.delattr("multibackend.cli.commands", raising=False)
    assert main([file if argument == "FILE" else argument for argument in arguments]) == 2
    assert words in capsys.readouterr().err


def test_listing_backends_and_naming_a_wrong_one_load_no_framework() -> None:
    """What they need is in the plugins; a framework takes seconds to import."""
    code = (
        "import sys\nfrom multibackend.cli.main import main\n"
        "main(['backends'])\nmain(['train', 'pyproject.toml', '--backend', 'flax'])\n"
        "print(sorted({'torch', 'jax', 'flax', 'optax', 'rich', 'plotly'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "no backend is called 'flax'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nowhere.py"], "there is no file 'nowhere.py'"),
        (["train", "FILE", "--backend", "tensorflow"], "no backend is called 'tensorflow'"),
        (["train", "FILE", "--micro-batch-size", "0"], "micro_batch_size must be >= 1, got 0"),
        (["train", "FILE", "--learning-rate", "nan"], "learning_rate must be a finite number"),
        (["train", "FILE", "--precision", "float16"], "precision must be one of"),
        (["train", "FILE", "--execution", "scan"], "execution must be one of"),
        (["train", "FILE", "--device", "cuda:7"], "device 'cuda:7' is not here"),
        (["compare", "FILE", "--backends", "torch"], "backends must be two names"),
        (["compare", "FILE", "--updates", "0"], "updates must be >= 1, got 0"),
        (["evaluate", "FILE"], "give the weights"),
        (["evaluate", "FILE", "--run-dir", "nowhere"], "there are no weights"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], words: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mistakes in the input never show a traceback."""
    assert main([file if argument == "FILE" else argument for argument in arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--learning-rat", "did you mean --learning-rate?"),
        ("--no-broke", "has a flag --no-broke;"),
        ("--nothing=3", "experiment() has --learning-rate, --micro-batch-size, --broken"),
    ],
)
def test_an_unknown_flag_is_refused_before_the_file_runs(
    flag: str, words: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as the file's source tells its flags: exit code 2, the flag's name, a likely slip, all that there are."""
    Path(file).write_text(f"raise RuntimeError('the file has run')\n{EXPERIMENT}")
    assert main(["train", file, flag, "0.1"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [("*, learning_rate: float", "*, learning_rate: 'float'"), ("def exp", "@same\ndef exp")]
)
def test_flags_that_the_source_does_not_tell_are_left_to_the_file(
    change: tuple[str, str], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An annotation that is no plain type, or a decorator, may make other flags; tyro refuses what is unknown."""
    before, after = change
    Path(file).write_text(f"same = lambda f: f\n{EXPERIMENT.replace(before, after)}")
    with pytest.raises(SystemExit) as stop:
        main(["train", file, "--learning-rat", "0.1"])
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert "--learning-rat" in output.err + output.out


def test_a_flag_that_is_typed_either_way_is_known(file: str) -> None:
    """`--no-broken` and `--micro_batch_size` are flags of the file."""
    assert main(["train", file, "--updates", "1", "--no-broken", "--micro_batch_size", "3"]) == 0


def test_a_file_without_experiment_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the file and what it lacks."""
    (tmp_path / "empty.py").write_text("")
    assert main(["train", str(tmp_path / "empty.py")]) == 2
    assert "defines no function experiment" in capsys.readouterr().err


def test_help_of_a_file_shows_its_flags(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` with a file lists the command's flags and those of experiment()."""
    with pytest.raises(SystemExit) as stop:
        main(["train", file, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--run-dir" in printed
    assert "--learning-rate" in printed
    assert printed.count("usage:") == 1


def test_help_loads_no_framework() -> None:
    """`multibackend --help` imports neither framework, nor rich nor tyro, which take time."""
    code = (
        "import sys\nfrom multibackend.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'jax', 'flax', 'optax', 'rich', 'tyro'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_train_evaluates_on_the_way_and_keeps_the_average(
    backend: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out metrics every second update and the best of them; the average's weights give its metrics again."""
    run_dir = tmp_path / "run"
    arguments = ["train", file, "--backend", backend, "--updates", "5", "--run-dir", str(run_dir)]
    assert main([*arguments, "--evaluate-every", "2", "--ema-decay", "0.9"]) == 0
    written = capsys.readouterr()
    printed = written.out.splitlines()
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    made = [line for line in lines if line["event"] == "EvaluationFinished" and line["scheduled"]]
    assert [line["update"] for line in made] == [2, 4, 5]
    for line in made:
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in line["metrics"].items())
        assert f"update {line['update']}: held-out {numbers}" in written.err.splitlines()
    assert f"evaluated after update 5: {numbers}" in printed
    assert re.match(rf"line on {backend}: 5 updates, loss .* to .* s, saved in {run_dir}$", printed[0])
    assert f"best loss: {min(line['metrics']['loss'] for line in made):.4f} after update 5" in printed
    average = next(line for line in printed if line.startswith("held-out (average): "))
    assert main(["evaluate", file, "--backend", backend, "--weights", str(run_dir / "ema.safetensors")]) == 0
    assert average.removeprefix("held-out (average): ") in capsys.readouterr().out
