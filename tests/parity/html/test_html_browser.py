"""The page in a real browser: no script error, words and plots are there, it fits, it prints, the keyboard suffices."""

from __future__ import annotations

import base64
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.reports import EVIL, compared, everything
from support.run_logs import write_log

from multibackend.pages.runs.page import write_report

pytest.importorskip("plotly.offline", reason="the extra 'html' is not installed")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium, which drives a browser, is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")
SECONDS = 30
PAGES = ("match", "broken", "everything", "evil")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests of this file."""
    from selenium.common.exceptions import WebDriverException  # noqa: PLC0415
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "browser (chromium)" if binary is None else "driver of the browser (chromedriver)"
        pytest.skip(f"no {missing} is installed; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        chrome = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    except WebDriverException as error:
        pytest.skip(f"{binary} does not start under {driver}: {(error.msg or '').splitlines()[:1]}")
    chrome.set_page_load_timeout(SECONDS)
    chrome.set_script_timeout(SECONDS)
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages as files: real runs that match, real runs that part, all sections, and texts that are markup."""
    reports = {
        "match": compared(broken=False),
        "broken": compared(broken=True),
        "everything": everything(layers=30, updates=60),
        "evil": everything(evil=EVIL),
    }
    directory = tmp_path_factory.mktemp("pages")
    return {name: report.write_html(directory / f"{name}.html").as_uri() for name, report in reports.items()}


def show(browser: Any, address: str, *, width: int = 1280, dark: bool = False, script: bool = True) -> None:
    """Open a page as a device of that width, and wait until its plots are drawn."""
    browser.get_log("browser")
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get(address)
    if script:
        drawn = "return document.documentElement.dataset.drawn === 'yes'"
        wait_until(browser, drawn)


def wait_until(browser: Any, script: str) -> None:
    """Until a script returns true."""
    from selenium.webdriver.support.ui import WebDriverWait  # noqa: PLC0415

    WebDriverWait(browser, SECONDS).until(lambda chrome: chrome.execute_script(script))


def colors(browser: Any, *selectors: str) -> list[str]:
    """The computed text colour of the first element of each selector, `fill` for parts of a plot."""
    script = (
        "return arguments[0].map(s => { const style = getComputedStyle(document.querySelector(s));"
        " return document.querySelector(s) instanceof SVGElement ? style.fill : style.color })"
    )
    return browser.execute_script(script, list(selectors))


def lightness(color: str) -> float:
    """From 0, black, to 255, white."""
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_without_an_error_and_fits(page: str, width: int, browser: Any, addresses: dict[str, str]) -> None:
    """From file://: nothing in the log, nothing fetched, the plots are drawn, and the page does not scroll sideways."""
    show(browser, addresses[page], width=width)
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    fits = "const r = document.documentElement; return [r.scrollWidth, document.body.scrollWidth, innerWidth]"
    page_width, body_width, window = browser.execute_script(fits)
    assert window == width
    assert max(page_width, body_width) <= window
    plots = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(plot => ({"
        "  id: plot.id, width: plot.querySelector('.main-svg').getBoundingClientRect().width,"
        "  lines: plot.querySelectorAll('.scatterlayer .trace').length,"
        "  points: plot.querySelectorAll('.scatterlayer .point').length,"
        "  maps: plot.querySelectorAll('.heatmaplayer image').length, room: plot.clientWidth}))"
    )
    drawn = {plot["id"]: plot for plot in plots}
    assert drawn["loss-plot"]["lines"] == 2
    assert drawn["difference-plot"]["lines"] >= 2
    if page == "match":
        assert "layer-plot" not in drawn
    else:
        assert drawn["layer-plot"]["maps"] == 1
    if page in ("everything", "evil"):
        assert drawn["difference-plot"]["lines"] == 5  # differences, zeros, tolerance, rounding with its foot
    else:
        assert drawn["loss-plot"]["points"] == 24
    for plot in plots:
        assert 0 < plot["width"] <= plot["room"] + 1


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_of_runs_opens_and_fits(width: int, browser: Any, tmp_path: Path) -> None:
    """Nothing in the log, nothing fetched, every plot drawn with a curve for each run, by night."""
    directories = [write_log(tmp_path / "one"), write_log(tmp_path / "two", text=EVIL, backend="jax")]
    page = write_report(directories, tmp_path / "report.html").as_uri()
    show(browser, page, width=width, dark=True)
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    sides = "const r = document.documentElement; return Math.max(r.scrollWidth, document.body.scrollWidth) - innerWidth"
    assert browser.execute_script(sides) <= 0
    count = "return [...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.scatterlayer .trace').length)"
    assert browser.execute_script(count) == [2] * 6
    if width == 1280:  # nothing of the window is left empty, a bar that scrolls aside
        assert browser.execute_script("return document.querySelector('main').getBoundingClientRect().width") > 1250


def test_a_match_and_a_break_are_said(browser: Any, addresses: dict[str, str]) -> None:
    """What stands at the top of the page as it is shown."""
    show(browser, addresses["match"])
    words = browser.find_element("css selector", ".verdict .words")
    assert words.text == "✓ The runs match."
    show(browser, addresses["broken"])
    assert browser.find_element("css selector", ".verdict .words").text == "✗ The runs part at update 1: loss."
    sentence = browser.find_element("css selector", "#divergence .sentence").text
    assert sentence == str(compared(broken=True).first_divergence)
    assert browser.find_element("css selector", ".stages [aria-current]").text == "loss"


def test_text_of_a_user_runs_nowhere(browser: Any, addresses: dict[str, str]) -> None:
    """Names with script elements are shown as they are written; no alert is open, no element of theirs exists."""
    from selenium.common.exceptions import NoAlertPresentException  # noqa: PLC0415

    show(browser, addresses["evil"])
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text
    assert browser.find_element("css selector", "h1").text == f"{EVIL}port"
    assert browser.find_elements("css selector", "b") == []
    assert browser.execute_script("return document.scripts.length") == 4  # plotly is added, unpacked


def test_the_dark_is_dark_and_plots_follow(browser: Any, addresses: dict[str, str]) -> None:
    """Page and plots change with the device's scheme, also while the page is open."""
    show(browser, addresses["everything"], dark=True)
    ground = "return getComputedStyle(document.body).backgroundColor"
    text, tick = ".verdict + nav a", "#loss-plot .xtick text"
    night = (lightness(browser.execute_script(ground)), *map(lightness, colors(browser, text, tick)))
    assert night[0] < 40
    assert min(night[1:]) > 120
    light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.execute_script(
        "window.changed = false; matchMedia('(prefers-color-scheme: dark)').onchange = () => { changed = true }"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", light)
    wait_until(browser, "return changed")
    day = (lightness(browser.execute_script(ground)), *map(lightness, colors(browser, text, tick)))
    assert day[0] > 240
    assert max(day[1:]) < 110


def test_the_keyboard_suffices(browser: Any, addresses: dict[str, str]) -> None:
    """The first stop skips to the findings, every stop shows where it is, and a table unfolds by Enter."""
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415

    show(browser, addresses["everything"])
    stops = []
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.switch_to.active_element
        if focused.tag_name == "body":
            break
        stops.append((focused.tag_name, focused.text.split("\n")[0]))
        outline = browser.execute_script("const s = getComputedStyle(arguments[0]); return s.outlineStyle", focused)
        assert outline == "solid", stops[-1]
    assert stops[0] == ("a", "Skip to the findings")
    tags = [tag for tag, _ in stops]
    assert "input" in tags
    assert ("summary", "The losses as a table") in stops
    assert tags.index("summary") < tags.index("input")
    summary = browser.find_element("css selector", "#losses summary")
    summary.send_keys(Keys.ENTER)
    assert browser.find_element("css selector", "#losses table").is_displayed()
    browser.find_element("css selector", ".skip").send_keys(Keys.ENTER)
    assert browser.execute_script("return location.hash") == "#content"


def test_typing_filters_the_parameters(browser: Any, addresses: dict[str, str]) -> None:
    """All words must occur, in a name, a partner or a change; the count is told; nothing typed shows all."""
    show(browser, addresses["everything"])
    shown = "return [...document.querySelectorAll('#parameter-table tbody tr')].filter(r => !r.hidden).length"
    field = browser.find_element("id", "filter")
    for typed, expected in (("blocks.7.", 3), ("TRANSPOSED", 30), ("layers_12 norm", 1), ("nothing like it", 0)):
        field.clear()
        field.send_keys(typed)
        assert browser.execute_script(shown) == expected, typed
        assert browser.find_element("id", "filter-status").text == f"{expected} of 90 shown"
    field.clear()
    field.send_keys(" ")
    assert browser.execute_script(shown) == 90


def test_without_javascript_words_and_tables_are_there(browser: Any, addresses: dict[str, str]) -> None:
    """The plots' places say where the numbers are, the filter is not shown, and the page still fits a phone."""
    try:
        show(browser, addresses["everything"], width=360, script=False)
        assert browser.find_element("css selector", ".verdict .words").text.startswith("✗ The runs part at update 4")
        notes = [note.text for note in browser.find_elements("css selector", "noscript p")]
        assert len(notes) == 3
        assert all(note == "The plot needs JavaScript; the table below has its numbers." for note in notes)
        assert not browser.find_element("id", "filter").is_displayed()
        assert len(browser.find_elements("css selector", "#parameter-table tbody tr")) == 90
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_it_prints(browser: Any, addresses: dict[str, str]) -> None:
    """To PDF, in light colours though the device is dark, with plots and all rows of the parameters."""
    show(browser, addresses["everything"], dark=True)
    browser.execute_script(
        "window.seen = []; addEventListener('beforeprint', () => { const tick = document.querySelector('.xtick text');"
        " seen.push(getComputedStyle(tick).fill, document.querySelector('.main-svg').getBoundingClientRect().width) })"
    )
    options = {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", options)["data"])
    assert pdf.startswith(b"%PDF")
    assert 3 <= pages_of(pdf) <= 14
    color, width = browser.execute_script("return seen")
    assert lightness(color) < 60
    assert width < 700
    assert lightness(colors(browser, ".xtick text")[0]) > 120, "after printing the page is dark again"


def pages_of(pdf: bytes) -> int:
    """How many pages a PDF has, whose objects may be compressed."""
    found = len(re.findall(rb"/Type\s*/Page\b", pdf))
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            found += len(re.findall(rb"/Type\s*/Page\b", zlib.decompressobj().decompress(stream)))
        except zlib.error:
            continue
    return found


def test_a_page_waits_for_nothing(browser: Any, addresses: dict[str, str]) -> None:
    """A device without network opens it just the same."""
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        show(browser, addresses["broken"])
        assert browser.execute_script("return document.querySelectorAll('.main-svg').length") > 0
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
        browser.execute_cdp_cmd("Network.disable", {})


def test_the_page_is_one_file_of_less_than_two_megabytes(addresses: dict[str, str]) -> None:
    """Nearly all of it is plotly's JavaScript, packed."""
    sizes = [Path(address.removeprefix("file://")).stat().st_size for address in addresses.values()]
    assert max(sizes) < 2_000_000
