"""What the site has besides the pages in docs/: the examples' source, the notebooks, and a check of what it loads."""

from __future__ import annotations

import ast
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = ROOT / "docs" / "notebooks"

LINK_TO_EXAMPLE = re.compile(r"\]\((?:\.\./)+examples/(\w+)\.py\)")
SEARCH = 'class="md-search" data-md-component="search"'
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
# what a page links to without loading it
LINKS = {"canonical", "next", "prev", "edit"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each example and each notebook."""
    for path in sorted(EXAMPLES.glob("*.py")):
        files.append(File.generated(config, f"examples/{path.stem}.md", content=example_page(path)))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to an example's file lead to its page here."""
    up = "../" * page.file.src_uri.count("/")
    return LINK_TO_EXAMPLE.sub(rf"]({up}examples/\1.md)", markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Give the search a name, and let the keyboard reach listings that scroll; the theme does neither."""
    named = output.replace(SEARCH, f'{SEARCH} aria-label="Search"')
    return named.replace("<pre>", '<pre tabindex="0">')


def on_post_build(config: MkDocsConfig) -> None:
    """End the build where a page would load something from elsewhere."""
    site = Path(config.site_dir)
    found = [f"{path.relative_to(site)}: {url}" for path in sorted(site.rglob("*.html")) for url in loaded_urls(path)]
    if found:
        raise PluginError("the site must be whole without a network, but loads\n  " + "\n  ".join(found))


def example_page(path: Path) -> str:
    """Show an example's own description and its source."""
    source = path.read_text(encoding="utf-8")
    title = (ast.get_docstring(ast.parse(source)) or path.stem).splitlines()[0]
    return f"# {path.name}\n\n{title}\n\n```python\n{source}```\n"


def notebook_page(path: Path) -> str:
    """Show a notebook's cells and what they printed or drew."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    shown = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            shown.append(text)
            continue
        shown.append(f"```python\n{text}\n```")
        shown += [output_of(output) for output in cell["outputs"]]
    return "\n\n".join(shown) + "\n"


def output_of(output: dict[str, Any]) -> str:
    """Write one output of a cell in Markdown; text where there is no picture."""
    data = output.get("data", {})
    if "image/svg+xml" in data:
        return "".join(data["image/svg+xml"])
    if "image/png" in data:
        return f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```"


class LoadedUrls(HTMLParser):
    """Collects what a page loads from another place."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Look at one tag."""
        values = dict(attributes)
        url = values.get(LOADING.get(tag, "")) or ""
        if url.startswith(("http:", "https:", "//")) and values.get("rel") not in LINKS:
            self.urls.append(url)


def loaded_urls(path: Path) -> list[str]:
    """Return what a page loads from elsewhere."""
    parser = LoadedUrls()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.urls
