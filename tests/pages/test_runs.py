"""The page of one run or several, read without a browser, and what is read from a log for it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.html_pages import Page, read
from support.reports import EVIL
from support.run_logs import Log, write_log
from support.variants import STUB

import multibackend as mb
from multibackend.cli.main import main
from multibackend.errors import DataError, FileError, PackageNotInstalledError
from multibackend.pages.runs.figures import thinned_means
from multibackend.pages.runs.page import render_runs, settings_side_by_side, write_report
from multibackend.pages.runs.run_log import RunLog, read_run
from multibackend.testing.conformance.problems import START, regression

pytest.importorskip("jinja2", reason="the extra 'html' is not installed")

PLOTLY = "packed"


def page_of(runs: list[RunLog], **options: Any) -> Page:
    return read(render_runs(runs, PLOTLY, **options))


def figures_of(page: Page) -> dict[str, Any]:
    return json.loads(page.one("script", id="figures").text)


def rows_of(page: Page, section: str) -> list[str]:
    """The texts of the rows of the tables of a section."""
    start = next(index for index, e in enumerate(page.elements) if e.attributes.get("id") == section)
    stop = next((i for i, e in enumerate(page.elements) if i > start and e.tag == "section"), len(page.elements))
    return [e.text for e in page.elements[start:stop] if e.tag == "tr" and "tbody" in e.path]


def test_a_real_run_is_read_back(tmp_path: Path) -> None:
    """What the history says is what the page's columns say; a second call of fit goes on in them."""
    experiment = STUB.experiment(regression(36), eval_data=regression(12))
    trainer = STUB.trainer(experiment, START, run_dir=tmp_path / "run")
    trainer.fit(updates=10, evaluate_every=5, progress=False)
    history = trainer.fit(updates=20, progress=False).history
    run = read_run(tmp_path / "run")
    for column in ("update", "loss", "grad_norm", "learning_rate", "examples", "epoch"):
        assert np.array_equal(run.columns[column], history[column]), column
    assert [evaluated.update for evaluated in run.evaluations] == [5, 10]
    assert run.settings["optimizer"].startswith("SGD(")
    assert run.settings["precision"] == "float64"
    assert (run.backends, run.ending, len(run.starts)) == (["stub"], "finished", 2)


def test_updates_that_a_killed_run_lost_are_not_counted_twice(tmp_path: Path) -> None:
    """It goes on from its last checkpoint: what came after that is made again, perhaps on the other framework."""
    log = Log(tmp_path, "digits", "torch")
    log.add("FitStarted", update=0, updates=300, device="cpu", execution="eager")
    log.updates(1, 250)
    log.add("FitStarted", update=120, updates=300, device="cpu", execution="scan")
    log.updates(121, 300)
    log.write()
    run = read_run(tmp_path)
    assert run.columns["update"].tolist() == list(range(1, 301))
    assert [evaluated.update for evaluated in run.evaluations] == [100, 200, 300]
    assert run.starts == [0, 120]
    assert run.ending == "cut off: the log ends inside it"


def test_speed_leaves_out_what_compiling_took(tmp_path: Path) -> None:
    """320 examples in a tenth of a second, twenty seconds of compiling notwithstanding."""
    updates, speeds = read_run(write_log(tmp_path / "run")).speeds()
    assert len(updates) > 10
    assert speeds == pytest.approx(np.full(len(speeds), 3200.0), rel=1e-3)


def test_sections_and_settings_of_several_runs(tmp_path: Path) -> None:
    """What differs comes first and is marked; each run has a row, each curve a colour and a dash of its own."""
    directories = [write_log(tmp_path / "one"), write_log(tmp_path / "two", backend="jax", peak=0.3, ends=False)]
    runs = [read_run(directory) for directory in directories]
    page = page_of(runs, command="multibackend report one two")
    headings = [e.text for e in page.elements if e.tag in ("h1", "h2")]
    assert headings == [
        "digits",
        "The runs",
        "Loss",
        "Evaluations",
        "Learning rate",
        "Gradient norm",
        "Examples per second",
        "Skipped windows",
        "Settings side by side",
        "How to make this page again",
    ]
    assert rows_of(page, "runs") == [
        "onedigitstorch3001 to 0.00333325.0 s1finished",
        "twodigitsjax3001 to 0.003333–1cut off: the log ends inside it",
    ]
    assert rows_of(page, "settings") == [
        "≠ backendtorchjax",
        "≠ optimizerSGD(learning_rate=0.1)SGD(learning_rate=0.3)",
        "devicecpu, eagercpu, eager",
        "seed00",
    ]
    assert "2 of 4 settings differ" in page.one("section", id="settings").text
    assert len(rows_of(page, "evaluations")) == 6
    assert rows_of(page, "skipped")[0] == "one300364nonfinite"
    lines = [trace["line"] for trace in figures_of(page)["loss-plot"]["data"]]
    assert lines[0]["color"] != lines[1]["color"]
    assert lines[0]["dash"] != lines[1]["dash"]
    assert page.all("pre")[-1].text == "multibackend report one two"


def test_one_run_has_no_differences(tmp_path: Path) -> None:
    """And no mark; a setting that only one of two runs tells differs."""
    run = read_run(write_log(tmp_path / "run"))
    assert not any(setting.differs for setting in settings_side_by_side([run]))
    other = read_run(write_log(tmp_path / "other"))
    other.settings["command"] = "multibackend train digits.py"
    (differing,) = [setting for setting in settings_side_by_side([run, other]) if setting.differs]
    assert (differing.name, differing.values) == ("command", ("–", "multibackend train digits.py"))


def test_text_of_a_user_is_never_markup(tmp_path: Path) -> None:
    """Names of experiments, settings and reasons change no element."""
    plain = page_of([read_run(write_log(tmp_path / "plain"))])
    evil = page_of([read_run(write_log(tmp_path / "evil", text=EVIL))])
    assert [e.tag for e in evil.elements if e.tag != "wbr"] == [e.tag for e in plain.elements if e.tag != "wbr"]
    assert evil.one("h1").text == f"{EVIL}digits"


def test_a_page_fetches_nothing_and_stays_small(tmp_path: Path) -> None:
    """Six long runs on one page of less than two megabytes; ids are unique; every plot has words."""
    directories = [write_log(tmp_path / f"run-{index}", updates=3000) for index in range(6)]
    path = write_report(directories, tmp_path / "pages" / "report.html")
    text = path.read_text(encoding="utf-8")
    assert len(text) < 2_000_000
    page = read(re.sub(r'(id="plotly">).*?(</script>)', r"\1\2", text, flags=re.DOTALL))
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        for attribute in ("src", "href", "srcset"):
            address = element.attributes.get(attribute)
            assert address is None or address == "data:," or address.startswith("#"), element
    plots = page.all("div", role="img")
    assert len(plots) == len(figures_of(page)) == 6
    assert all(len(plot.attributes["aria-label"] or "") > 30 for plot in plots)


def test_figures_are_what_plotly_knows(tmp_path: Path) -> None:
    """plotly's own check of every attribute, with a colour in place of the page's names."""
    graph_objects = pytest.importorskip("plotly.graph_objects", reason="the extra 'html' is not installed")
    for figure in figures_of(page_of([read_run(write_log(tmp_path / "run", updates=2500))])).values():
        colored = json.loads(re.sub(r'"--[a-z0-9-]+"', '"#123456"', json.dumps(figure)))
        graph_objects.Figure(data=colored["data"], layout=colored["layout"])


def test_means_leave_out_what_is_no_number() -> None:
    """A stretch without any number stays without one."""
    values = np.array([1.0, np.nan, np.nan, np.nan, 5.0])
    updates, means = thinned_means(np.arange(1, 6), values, 3)
    assert updates.tolist() == [2, 4, 5]
    assert np.array_equal(means, [1.0, np.nan, 5.0], equal_nan=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no log at"),
        ("", "no call of fit is in it"),
        ('{"event": "FitStarted"}\n', "is not that of a run"),
    ],
)
def test_a_directory_without_a_log_is_refused(content: str | None, words: str, tmp_path: Path) -> None:
    """With what it lacks."""
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises((DataError, FileError), match=words):
        read_run(tmp_path)
    with pytest.raises(DataError, match="there is no directory"):
        read_run(tmp_path / "nowhere")


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints where; what was typed to start a run stands among its settings, a damaged run.json aside."""
    pytest.importorskip("plotly.offline", reason="the extra 'html' is not installed")
    one, two = write_log(tmp_path / "one"), write_log(tmp_path / "two")
    typed = {"file": "/x/digits.py", "flags": ["--width", "8"], "options": {"backend": "jax"}}
    (one / "run.json").write_text(json.dumps(typed))
    (two / "run.json").write_text("[1")
    page = tmp_path / "report.html"
    assert main(["report", str(one), str(two), "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"The report as a page: {page}\n"
    assert "multibackend train digits.py --width 8 --backend jax" in page.read_text(encoding="utf-8").replace(
        "<wbr>", ""
    )
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "there is no directory" in capsys.readouterr().err
    assert main(["report", str(one), "--output", str(tmp_path)]) == 2
    assert "it is a directory" in capsys.readouterr().err


def test_a_result_draws_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, rate, norm and each metric, the evaluated loss beside the loss; without plotly the repair is named."""
    pytest.importorskip("plotly.subplots", reason="the extra 'html' is not installed")
    experiment = STUB.experiment(regression(36), eval_data=regression(12))
    result = STUB.trainer(experiment, START).fit(updates=20, evaluate_every=5, progress=False)
    figure = result.plot()
    assert [trace.name for trace in figure.data] == ["loss", "learning rate", "gradient norm", "evaluated loss"]
    assert list(figure.data[0].y) == result.history["loss"].tolist()
    assert list(figure.data[-1].x) == [5, 10, 15, 20]
    assert STUB.trainer(experiment, START).fit(updates=0, progress=False).plot().data[0].y in (None, ())
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    with pytest.raises(PackageNotInstalledError, match=r"'multibackend\[html\]'"):
        result.plot()


def test_results_and_trainers_print_what_they_are(tmp_path: Path) -> None:
    """Short and true, in a notebook too; what a user named is no markup."""
    experiment = STUB.experiment(regression(36), name="<b>line", eval_data=regression(12))
    trainer = STUB.trainer(experiment, START, run_dir=tmp_path / "run")
    result = trainer.fit(updates=20, evaluate_every=10, progress=False)
    lines = str(result).splitlines()
    first, last = result.history[0].loss, result.history[-1].loss
    assert lines[0].startswith(f"<b>line on stub: 20 updates, loss {first:.4f} to {last:.4f}, ")
    assert lines[0].endswith(f"saved in {tmp_path / 'run'}")
    assert lines[1].startswith("evaluated after update 20: loss ")
    assert lines[2].startswith("best loss: ")
    assert len(repr(result).splitlines()) == len(repr(result.history).splitlines()) == 1
    for shown in (trainer, result):
        assert "&lt;b&gt;line on stub" in shown._repr_html_()
    printed = str(trainer)
    assert printed.splitlines()[0].startswith("<b>line on stub (cpu, plain, float64), at update 20, last loss ")
    assert re.search(r"^optimizer +SGD\(", printed, re.MULTILINE)
    assert repr(mb.History()) == "<History of no updates>"
