"""Links lead somewhere, on the site and from PyPI; and what is drawn or listed from the code is current."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.docs.pages import COLUMN, DOCS, PAGES, ROOT, TEXTS, anchors, without_code

CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
SITE = re.search(r"^site_url: (.+)$", CONFIG, re.MULTILINE)[1]  # type: ignore[index]
NOTEBOOKS = {f"notebooks/{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")}


def links(page: str) -> list[str]:
    return re.findall(r"\]\(\s*<?([^)>\s]+)", without_code(page))


def leads_to(page: str, link: str) -> tuple[str, str]:
    """Return the page and the anchor that a link of the site names."""
    path, _, anchor = link.partition("#")
    if not path:
        return page, anchor
    if link.startswith(SITE):
        slug = path.removeprefix(SITE).strip("/")
        index = f"{slug}/index.md".lstrip("/")
        return (index if index in PAGES else f"{slug}.md"), anchor
    return str((DOCS / page).parent.joinpath(path).resolve().relative_to(DOCS)), anchor


@pytest.mark.parametrize("page", PAGES)
def test_code_is_not_wider_than_the_column(page):
    blocks = re.findall(
        r"^ *```.*?^ *```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert [line for block in blocks for line in block.splitlines() if len(line) > COLUMN] == []


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for link in links(page):
        if "://" in link and not link.startswith(SITE):
            continue
        if page == "CONTRIBUTING.md" and "://" not in link:  # it is read in the repository
            assert (ROOT / link.partition("#")[0]).exists(), link
            continue
        name, anchor = leads_to(page, link)
        if name in NOTEBOOKS:
            continue
        assert name in PAGES or (DOCS / name).is_file(), f"{page}: {link}"
        assert not anchor or name.startswith("api/") or anchor in anchors(name), f"{page}: {link}"


def test_the_links_of_the_readme_work_on_pypi():
    found = links("README.md")
    assert len(found) > 10
    assert [link for link in found if not link.startswith("https://")] == []
    assert sum(link.startswith(SITE) for link in found) > 10


def test_the_navigation_has_every_page_once():
    nav = CONFIG.partition("\nnav:\n")[2]
    named = re.findall(r"([\w/.-]+\.md)\s*$", nav, re.MULTILINE)
    assert len(set(named)) == len(named)
    assert set(named) == set(PAGES) | NOTEBOOKS


def test_the_picture_of_the_layers_is_current():
    drawn = runpy.run_path(str(DOCS / "draw_layers.py"))["draw"]()
    assert (DOCS / "layers.svg").read_text(encoding="utf-8") == drawn, "run python docs/draw_layers.py"
