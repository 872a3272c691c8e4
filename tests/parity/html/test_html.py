"""The page of a comparison, read without a browser: its words, its tables, that it is whole and fetches nothing."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import sys
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.html_pages import Page, read
from support.reports import EVIL, compared, everything

from multibackend.errors import ConfigurationError, PackageNotInstalledError
from multibackend.pages import writing
from multibackend.parity import CompareReport
from multibackend.parity.html.figures import LogAxis, difference_figure, heat_figure, loss_figure
from multibackend.parity.html.layers import by_layer, thinned
from multibackend.parity.html.page import render

pytest.importorskip("jinja2", reason="the extra 'html' is not installed")

PLOTLY = "/* plotly's JavaScript, which these tests do not run */"
EVERYTHING = everything()


def page_of(report: CompareReport, **options: Any) -> Page:
    return read(render(report, PLOTLY, **options))


def figures_of(page: Page) -> dict[str, Any]:
    """The plots, which must be JSON without NaN or Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(page.one("script", id="figures").text, parse_constant=refuse)


def rows_of(page: Page, table: str) -> list[str]:
    """The text of the rows in the body of a table, found by the words of its caption."""
    elements = page.elements
    start = next(i for i, e in enumerate(elements) if e.tag == "table" and table in e.text)
    stop = next((i for i, e in enumerate(elements) if i > start and e.tag == "table"), len(elements))
    return [e.text for e in elements[start:stop] if e.tag == "tr" and "tbody" in e.path]


def unpacked(text: str) -> str:
    """What page.js makes of the packed script."""
    return zlib.decompress(base64.b85decode(text.replace(",", "<")), -zlib.MAX_WBITS).decode()


def test_a_page_holds_plotly_and_fetches_nothing(tmp_path: Path) -> None:
    """One file: plotly's own script stands in it, and no element names another address; the policy forbids the rest."""
    offline = pytest.importorskip("plotly.offline", reason="the extra 'html' is not installed")
    path = compared(broken=False).write_html(tmp_path / "new" / "parity.html")
    assert path == tmp_path / "new" / "parity.html"
    text = path.read_text(encoding="utf-8")
    packed = re.search(r'<script type="text/plain" id="plotly">(.*?)</script>', text, re.DOTALL)
    assert packed is not None
    assert unpacked(packed[1]) == offline.get_plotlyjs()
    own = text.replace(packed[1], "")
    assert len(own) < 200_000
    assert len(text) < 2_000_000
    page = read(own)
    for element in page.elements:
        for attribute in ("src", "href", "srcset", "action", "data", "poster"):
            address = element.attributes.get(attribute)
            assert address is None or address == "data:," or address.startswith("#"), element
    assert not re.search(r"@import|url\(|@font-face|https?:", own)
    policy = next(e for e in page.all("meta") if "http-equiv" in e.attributes).attributes["content"]
    assert policy.startswith("default-src 'none'; script-src 'unsafe-inline'")


def test_sections_stand_in_the_order_in_which_they_are_asked_for() -> None:
    """Verdict, first divergence, what was run, curves, layers, parameters, evaluation, how to run it again."""
    page = page_of(EVERYTHING)
    headings = [e.text for e in page.elements if e.tag in ("h1", "h2")]
    assert headings == [
        "port",
        "First divergence",
        "What was run",
        "Losses",
        "Difference per update",
        "Layers by update",
        "Parameters",
        "Places that are wrong by themselves",
        "Evaluation",
        "How to run this again",
    ]
    assert page.all("div", class_="verdict bad")[0].text.startswith(
        "✗ The runs part at update 4: activations of blocks.1"
    )


@pytest.mark.parametrize("which", ["match", "broken", "everything"])
def test_a_page_is_well_formed_and_can_be_used_without_eyes_or_mouse(which: str) -> None:
    """Ids are unique and every reference finds one; tables have captions and scopes, plots have words."""
    page = page_of(EVERYTHING if which == "everything" else compared(broken=which == "broken"))
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        for attribute in ("for", "aria-labelledby", "aria-describedby"):
            assert element.attributes.get(attribute, ids[0]) in ids
        if (element.attributes.get("href") or "").startswith("#"):
            assert element.attributes["href"][1:] in ids
    assert page.one("html").attributes["lang"] == "en"
    links = page.all("a")
    assert links[0].attributes == {"href": "#content", "class": "skip"}
    tables = page.all("table")
    assert len(tables) == len(page.all("caption")) >= 3
    for cell in page.all("th"):
        assert cell.attributes["scope"] == ("col" if "thead" in cell.path else "row")
    for box in page.all("div", class_="scroll tall"):
        assert box.attributes["tabindex"] == "0"
        assert box.attributes["aria-label"]
    plots = page.all("div", role="img")
    assert len(plots) == len(figures_of(page)) == len(page.all("noscript")) >= 2
    for plot in plots:
        assert len(plot.attributes["aria-label"] or "") > 30
    levels = [int(e.tag[1]) for e in page.elements if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_match_is_said_in_words() -> None:
    """The verdict with the figures that it rests on, and that nothing diverges."""
    report = compared(broken=False)
    page = page_of(report)
    verdict = page.one("div", class_="verdict good").text
    assert verdict.startswith("✓ The runs match.")
    assert "tolerance 1e-10" in verdict
    assert "tolerance 1e-09" in verdict
    assert "None: every loss and every parameter is within the tolerance." in page.one("section", id="divergence").text


def test_what_was_run_is_said() -> None:
    """Backends, versions, optimizer, sizes and seed of a real comparison."""
    page = page_of(compared(broken=False))
    run = page.one("section", id="run").text
    assert "Adam(learning_rate=0.01" in run
    terms = [e.text for e in page.all("dt")]
    for term in ("experiment", "precision", "updates", "seed", "optimizer", "loss", "versions", "data order"):
        assert term in terms
    assert re.search(r"torch \d+\.\d+.*jax \d+\.\d+", run)
    assert " at 0x" not in run


def test_a_broken_pair_is_named_at_the_top() -> None:
    """A loss that is 0.1 % larger on one side: the sentence of the report, its stage, update and both values."""
    report = compared(broken=True)
    divergence = report.first_divergence
    assert divergence is not None
    page = page_of(report)
    section = page.one("section", id="divergence").text
    assert str(divergence).splitlines()[0] in section
    assert page.one("li", **{"aria-current": "step"}).text == "loss"
    for value in divergence.values:
        assert f"{value:.9g}" in section
    assert page.all("meta", name="description")[0].attributes["content"] == str(divergence)


def test_causes_come_with_proof_and_repair() -> None:
    """What explains a divergence, what undoing it measured, and the line to change; rounding as a factor."""
    page = page_of(EVERYTHING)
    section = page.one("section", id="divergence").text
    for words in (
        "Cause: LayerNorm epsilon",
        "LayerNorm adds 1e-05 to the variance in torch, 1e-06 in jax.",
        "with that undone, the difference of 4.3e-03 falls to 3.1e-08.",
        "2e-08; what was found is 215,000 times that",
        "layers_1.norm",
        "inside blocks.1",
        "In float64 the difference stays.",
        "This is the first of 2 places that are wrong by themselves.",
    ):
        assert words in section
    assert page.all("pre")[0].text == "nnx.LayerNorm(4, epsilon=1e-05, rngs=rngs)"
    untried = dataclasses.replace(EVERYTHING.first_divergence.causes[0], after=None)  # type: ignore[union-attr]
    divergence = dataclasses.replace(EVERYTHING.first_divergence, causes=(untried,), rounding=None)  # type: ignore[type-var]
    section = page_of(dataclasses.replace(EVERYTHING, first_divergence=divergence)).one("section", id="divergence").text
    assert "It could not be tried." in section
    assert "not measured" in section


def test_parameters_are_listed_worst_first_with_their_partners() -> None:
    """Undetermined ones last, marks beyond the tolerance, partner, change of layout, shapes, evidence."""
    page = page_of(EVERYTHING)
    rows = rows_of(page, "parameters at the end")
    order = sorted(EVERYTHING.parameter_differences.items(), key=lambda item: -item[1])
    order.sort(key=lambda item: item[0] in EVERYTHING.undetermined)
    assert len(rows) == len(order)
    for row, (name, difference) in zip(rows, order, strict=True):
        assert (
            row.startswith(f"{name}↔ {name.replace('blocks.', 'layers_').replace('weight', 'kernel')}")
            or "bias" in name
        )
        assert f"{difference:.0e}" in row
        assert ("✗" in row) == (difference > EVERYTHING.tolerance.parameters and name not in EVERYTHING.undetermined)
        assert ("gradient is rounding" in row) == (name in EVERYTHING.undetermined)
        assert ("[4, 3][3, 4]transposed" in row) == ("fc.weight" in name)
        assert ("evidence: gradient agrees to 1e-15" in row) == ("norm" in name)
    assert "torch alone: mask: a constant" in page.one("section", id="parameters").text
    bare = rows_of(page_of(compared(broken=False)), "parameters at the end")
    assert len(bare) == 2
    assert any("[2, 3]kernel [3, 2]each in its framework's layout" in row for row in bare), bare


def test_rounding_of_a_match_is_no_finding() -> None:
    """Two runs that match have a sentence and a folded table in place of the map; runs that part have the map."""
    page = page_of(compared(broken=False))
    assert "layer-plot" not in figures_of(page)
    assert "Nothing but rounding: over the layer" in page.one("section", id="layers").text
    assert "layer-plot" in figures_of(page_of(EVERYTHING))


def test_every_wrong_place_is_listed() -> None:
    """Each layer that is wrong by itself, with its partner, what is wrong, the sizes and both values."""
    rows = rows_of(page_of(EVERYTHING), "Each was given")
    assert rows == [
        "blocks.0.norm↔ layers_0.norminside blocks.0right inputs, wrong outputs4.3e-032e-080.50.25",
        "blocks.1.norm↔ layers_1.norminside blocks.1something else arrives here7e-01–0.50.25",
    ]
    assert "places" not in [e.attributes.get("id") for e in page_of(compared(broken=False)).elements]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"what": "", "stage": "activations"}, "activations of the model's outputs."),
        ({"place": "between a and b, inside c"}, "activations between a and b, inside c."),
        ({"stage": "update", "what": "number of skipped windows"}, "update (number of skipped windows)."),
        ({"stage": "loss", "what": "loss/aux"}, "loss (loss/aux)."),
        ({"stage": "gradients", "what": "head.weight"}, "gradients of head.weight."),
        ({"stage": "data order", "what": "label"}, "data order (label)."),
    ],
)
def test_the_verdict_names_what_parts(changes: dict[str, Any], words: str) -> None:
    """A layer, a place between layers, the outputs, a figure or a field of the data."""
    divergence = dataclasses.replace(EVERYTHING.first_divergence, **changes)
    page = page_of(dataclasses.replace(EVERYTHING, first_divergence=divergence))
    assert page.one("p", class_="words").text == f"✗ The runs part at update 4: {words}"


def test_a_run_without_updates_has_a_page() -> None:
    """Where every window was skipped there are no curves; the words are there."""
    report = everything(updates=0)
    page = page_of(report)
    assert figures_of(page) == {}
    assert page.one("section", id="parameters").text


def test_text_of_a_user_is_never_markup() -> None:
    """A name that ends the script and begins another changes no element of the page, and arrives as it was written."""
    plain, evil = page_of(EVERYTHING, command="run"), page_of(everything(evil=EVIL), command=f"run {EVIL}")
    assert [e.tag for e in evil.elements if e.tag != "wbr"] == [e.tag for e in plain.elements if e.tag != "wbr"]
    assert evil.one("h1").text == f"{EVIL}port"
    assert evil.one("title").text == f"{EVIL}port: torch against jax"
    assert evil.all("pre")[-1].text == f"run {EVIL}"
    names = {e.attributes["data-name"] for e in evil.all("span", class_="name")}
    assert f"{EVIL}blocks.1.norm" in names
    drawn = json.dumps(figures_of(evil))
    assert "<script" not in drawn, "plotly reads markup in its texts"
    assert "blocks.1" in drawn


def test_json_in_a_script_cannot_end_it() -> None:
    """No bracket of an element is left in it, and it reads back as it was; NaN is refused."""
    value = {"</script>": ["<!--", "a & b", 1.5, None]}
    template = writing.environment("multibackend.parity.html").from_string("{{ value | tojson }}")
    written = template.render(value=value)
    assert not set(written) & set("<>&")
    assert json.loads(written) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        template.render(value=[float("nan")])


def test_a_text_is_escaped_and_a_missing_one_is_an_error() -> None:
    """Whatever its type, in text and in an attribute; a name that no function prepared is not left blank."""
    template = writing.environment("multibackend.parity.html").from_string('<p title="{{ text }}">{{ text }}</p>')
    escaped = "&lt;b&gt; &amp; &#34;&#39;"
    assert template.render(text="<b> & \"'") == f'<p title="{escaped}">{escaped}</p>'
    with pytest.raises(Exception, match="'text' is undefined"):
        template.render()


def test_evaluations_and_command() -> None:
    """Both backends' metrics with their difference, arrays by their shape; the command line, else the call."""
    page = page_of(EVERYTHING, command="multibackend compare port.py --html parity.html")
    assert rows_of(page, "evaluation data") == ["loss0.50.512e-02", "confusionarray [2, 2]array [2, 2]0"]
    assert page.all("pre")[-1].text == "multibackend compare port.py --html parity.html"
    call = page_of(EVERYTHING).all("pre")[-1].text
    assert "mb.compare(experiment, backends=('torch', 'jax'), updates=12, precision=\"float32\")" in call


def test_figures_are_what_plotly_knows() -> None:
    """plotly's own check of every attribute, with the page's colours in place of their names."""
    graph_objects = pytest.importorskip("plotly.graph_objects", reason="the extra 'html' is not installed")
    for report in (EVERYTHING, compared(broken=True), everything(layers=40, updates=300)):
        for figure in figures_of(page_of(report)).values():
            colored = json.loads(re.sub(r'"--[a-z0-9-]+"', '"#123456"', json.dumps(figure)))
            graph_objects.Figure(data=colored["data"], layout=colored["layout"])
            for path in figure.get("narrow", {}):
                first, *rest = path.split(".")
                place = figure[first]
                for part in rest[:-1]:
                    place = place[int(part)] if isinstance(place, list) else place[part]


def test_colors_of_the_plots_are_in_the_style_sheet() -> None:
    """Every "--name" in a plot is a colour of both the light and the dark page."""
    page = page_of(EVERYTHING)
    named = set(re.findall(r'"(--[a-z0-9-]+)"', json.dumps(figures_of(page))))
    light, dark = themes(page)
    assert {"--first", "--second", "--difference", "--heat-0"} <= named <= light.keys()
    assert named <= dark.keys()


def themes(page: Page) -> tuple[dict[str, str], dict[str, str]]:
    style = page.one("style").text
    light, dark = re.findall(r":root[^{]*\{(.*?)\n *\}", style, re.DOTALL)[:2]
    return tuple(dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6}|rgba\([^)]*\))", part)) for part in (light, dark))  # type: ignore[return-value]


def luminance(color: str) -> float:
    """WCAG 2's relative luminance."""
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme: int) -> None:
    """Text has a contrast of at least 4.5 against what it stands on, lines one of at least 3."""
    colors = themes(page_of(EVERYTHING))[theme]
    on_paper = ("ink", "muted", "first-ink", "good", "bad", "difference")
    pairs = [(name, "paper") for name in on_paper] + [("ink", "panel"), ("muted", "panel")]
    pairs += [("good", "good-panel"), ("bad", "bad-panel"), ("ink", "good-panel"), ("ink", "bad-panel")]
    for text, ground in pairs:
        assert contrast(colors[f"--{text}"], colors[f"--{ground}"]) >= 4.5, (text, ground)
    for line in ("first", "second", "difference", "focus"):
        assert contrast(colors[f"--{line}"], colors["--paper"]) >= 3, line
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_curves_differ_for_the_color_blind(theme: int) -> None:
    """Seen with no red or no green cones (Machado et al. 2009) the curves stay apart; they differ by dash too."""
    colors = themes(page_of(EVERYTHING))[theme]
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    one, other = (np.array([int(colors[n][i : i + 2], 16) for i in (1, 3, 5)]) for n in ("--first", "--second"))
    for sight in (np.eye(3), np.array(protan), np.array(deutan)):
        assert np.linalg.norm(sight @ (one - other)) > 80
    first, second = figures_of(page_of(EVERYTHING))["loss-plot"]["data"]
    assert "dash" not in first["line"]
    assert second["line"]["dash"] == "dash"


def test_heat_colors_rise_evenly() -> None:
    """The scale goes one way in lightness, so that it reads without colour: darker by day, brighter by night."""
    for theme, sign in zip(themes(page_of(EVERYTHING)), (-1, 1), strict=True):
        steps = np.diff([luminance(theme[f"--heat-{index}"]) for index in range(6)])
        assert (sign * steps > 0).all()


def test_zero_and_infinity_have_places_on_a_log_axis() -> None:
    """Zeros at the foot, under their own label; an infinite difference above; numbers by their size."""
    gaps = np.array([0.0, 1e-8, 2e-3, np.inf])
    axis = LogAxis(gaps, (1e-4,))
    assert [axis.place(gap) for gap in gaps] == [-9.0, -8.0, pytest.approx(np.log10(2e-3)), -1.0]
    assert (axis.labels[0], axis.labels[-1]) == ("0", "∞")
    assert axis.range[0] < -9 < -1 < axis.range[1]
    low, high = LogAxis(np.zeros(3), (1e-10,)).range
    assert low < -11 < -10 < high
    assert "0" not in LogAxis(np.array([1e-5, 1e-3])).labels


def test_differences_are_drawn_where_they_are() -> None:
    """The line leaves out zeros, which are hollow points; the band ends at the tolerance."""
    gaps = np.array([0.0, 1e-8, 0.0, np.inf])
    figure = difference_figure(np.arange(1, 5), gaps, 1e-6, divergence=4)
    line, hollow, edge = figure["data"]
    assert line["y"][:3] == [None, -8.0, None]
    assert hollow["y"][1] is None
    assert hollow["marker"]["symbol"] == "circle-open"
    assert hollow["y"][0] == hollow["y"][2] < -8
    assert [shape["y1"] for shape in figure["layout"]["shapes"] if shape.get("xref") == "paper"] == [-6.0]
    assert (edge["name"], edge["y"]) == ("tolerance 1e-06", [-6.0, -6.0])
    assert line["y"][3] > -6
    assert len(difference_figure(np.arange(1, 3), np.array([1e-3, 1e-4]), float("inf"), None)["layout"]["shapes"]) == 0


def test_a_loss_that_is_no_number_is_left_out() -> None:
    """JSON has no NaN; the curve has a gap there, and the page is whole."""
    losses = {"torch": np.array([1.0, np.nan, 0.5]), "jax": np.array([1.0, np.inf, 0.5])}
    assert [trace["y"] for trace in loss_figure(np.arange(1, 4), losses, None)["data"]] == [[1.0, None, 0.5]] * 2
    report = everything()
    broken = dataclasses.replace(report, loss_differences=np.where(np.arange(12) > 5, np.inf, report.loss_differences))
    page = page_of(broken)
    assert "at most infinite" in page.one("section", id="differences").text
    figures_of(page)


def test_losses_that_fall_far_are_drawn_on_a_log_axis() -> None:
    """From 1 to 1e-4 on a log axis, from 1 to 0.5 on a plain one."""
    for last, kind in ((1e-4, "log"), (0.5, None)):
        losses = {"torch": np.array([1.0, last]), "jax": np.array([1.0, last])}
        assert loss_figure(np.arange(1, 3), losses, None)["layout"]["yaxis"].get("type") == kind


def test_layers_are_gathered() -> None:
    """A layer is a parameter's name without its last part and has its worst difference; many layers become blocks."""
    names = ["embed.weight", "blocks.0.norm.weight", "blocks.0.norm.bias", "blocks.1.norm.weight", "scale"]
    gaps = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 1.0, 0.0, 9.0, 1.0]])
    heat = by_layer(names, gaps)
    assert heat.rows == ("embed", "blocks.0.norm", "blocks.1.norm", "the model itself")
    assert heat.differences.tolist() == [[1.0, 6.0], [3.0, 1.0], [4.0, 9.0], [5.0, 1.0]]
    assert heat.worst == ("embed.weight", "blocks.0.norm.bias", "blocks.1.norm.weight", "scale")
    blocks = by_layer(names, gaps, most_rows=3)
    assert blocks.rows == ("embed", "blocks", "the model itself")
    assert blocks.differences[1].tolist() == [4.0, 9.0]
    assert blocks.layers == 4


def test_many_layers_and_updates_stay_readable() -> None:
    """120 layers and 5000 updates are at most 48 rows and 240 columns, and the worst of what is folded is shown."""
    names = [f"model.blocks.{block}.{layer}.weight" for block in range(24) for layer in "abcde"]
    gaps = np.zeros((5000, len(names)))
    gaps[4321, 77] = 0.5
    heat = by_layer(names, gaps)
    assert len(heat.rows) == 24
    assert len(heat.updates) <= 240
    row, column = np.unravel_index(np.argmax(heat.differences), heat.differences.shape)
    assert heat.rows[row] == "model.blocks.15"
    assert heat.worst[row] == names[77]
    assert heat.updates[column] <= 4322 < heat.updates[column + 1]
    figure = heat_figure(heat, "float64", ("model.blocks.15", 4322))
    assert figure["data"][1]["x"] == [int(heat.updates[column])]
    assert figure["data"][1]["y"] == [15]


def test_a_peak_is_never_thinned_away() -> None:
    """Of 10,000 updates about 100 remain, the largest difference, both ends and the wanted one among them."""
    gaps = np.zeros(10_000)
    gaps[1234] = 1.0
    shown = thinned(gaps, 100, keep=(77,)).tolist()
    assert {0, 77, 1234, 9_999} <= set(shown)
    assert len(shown) <= 103
    assert shown == sorted(shown)
    page = page_of(everything(updates=3000))
    assert len(rows_of(page, "Losses and gradient norms")) <= 203
    assert "updates left out" in page.one("section", id="losses").text


@pytest.mark.parametrize("module", ["plotly.offline", "jinja2"])
def test_without_a_package_the_command_that_installs_it_is_named(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typed error, and no file."""
    if module == "jinja2":
        pytest.importorskip("plotly.offline", reason="the extra 'html' is not installed")
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(PackageNotInstalledError, match=rf"'{package}' .* a page of HTML needs.*'multibackend\[html\]'"):
        compared(broken=False).write_html(tmp_path / "parity.html")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A directory, or a file where a directory should be."""
    pytest.importorskip("plotly.offline", reason="the extra 'html' is not installed")
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "parity.html"):
        with pytest.raises(ConfigurationError, match="no page can be written to"):
            compared(broken=False).write_html(place)


def test_rounding_is_a_band_where_it_was_measured() -> None:
    """A dotted line at its size with a band from the foot of the plot up to it; updates without any leave no gap."""
    rounding = np.array([1e-9, 0.0, 1e-7])
    figure = difference_figure(np.arange(1, 4), np.array([1e-3, 1e-2, 1e-2]), 1e-4, None, rounding)
    foot, line = figure["data"][1:3]
    assert line["y"] == [-9.0, None, -7.0]
    assert (line["fill"], line["connectgaps"], line["line"]["dash"]) == ("tonexty", True, "dot")
    assert foot["y"] == [figure["layout"]["yaxis"]["range"][0]] * 3
    assert "below the dotted line" in page_of(EVERYTHING).one("section", id="differences").text
    assert "dotted" not in page_of(compared(broken=False)).one("section", id="differences").text
