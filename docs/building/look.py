"""The built site in a real browser: screenshots at two widths, light and dark, and axe's findings about accessibility.

    npm install axe-core
    make docs && python docs/building/look.py --axe node_modules/axe-core/axe.min.js --shots shots

Fails where a finding is serious or critical, or where a page is wider than its window. Needs chromium, chromedriver
and selenium, which the extra `test` brings.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGES = ("index.html", "first_run.html", "coming_from/keras.html", "reference/experiments.html", "gallery.html")
WIDTHS = (360, 1280)
SCHEMES = ("light", "dark")
SERIOUS = {"serious", "critical"}
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


def main(arguments: list[str]) -> int:
    """Look at every page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, default=ROOT / "site")
    parser.add_argument("--axe", type=Path, required=True, help="axe.min.js of the package axe-core")
    parser.add_argument("--shots", type=Path, help="a folder for screenshots")
    parser.add_argument("--pages", nargs="*", default=PAGES)
    options = parser.parse_args(arguments)
    axe = options.axe.read_text(encoding="utf-8")
    total: Counter[str] = Counter()
    with served(options.site) as address, browser() as driver:
        for page in options.pages:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    show(driver, f"{address}/{page}", width, scheme)
                    if options.shots is not None:
                        name = f"{page.removesuffix('.html').replace('/', '-')}-{width}-{scheme}.png"
                        keep(driver, options.shots / name)
                    overflow = driver.execute_script(OVERFLOW)
                    found = findings(driver, axe)
                    total += found
                    total["overflow"] += overflow > 0
                    print(f"{page:32} {width:5} {scheme:6} {dict(found) or 'no finding'}; {overflow} px too wide")
    print(f"together: {dict(total)}")
    return 1 if total["overflow"] or any(total[impact] for impact in SERIOUS) else 0


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder to this machine alone; give its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Start a browser without a window."""
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    # named, so that none is looked for elsewhere
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)), "")
    driver = webdriver.Chrome(options=options, service=Service(executable_path=shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Any, url: str, width: int, scheme: str) -> None:
    """Open a page in a window of that width, as a reader who prefers light or dark."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(url)


def keep(driver: Any, path: Path) -> None:
    """Take a picture of what is seen first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(path))


def findings(driver: Any, axe: str) -> Counter[str]:
    """Count axe's violations by impact, and print them."""
    driver.execute_script(axe)
    result = driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    for violation in result["violations"]:
        where = [node["target"] for node in violation["nodes"]][:3]
        print(f"  {violation['impact']}: {violation['id']}: {violation['help']}: {where}")
    return Counter(violation["impact"] for violation in result["violations"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
