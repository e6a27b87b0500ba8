"""The page in a real browser: opens from disk, no error, sorts, filters, never overflows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sparse_transfer.report.write import write

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
    "--window-size=1600,1200",
    "--dump-dom",
)
PROBE = """<script>
const table = document.querySelector("#tasks-main");
const first = () => table.querySelector("tbody tr:not([hidden])").textContent;
const visible = () => table.querySelectorAll("tbody tr:not([hidden])").length;
const seen = { inner: innerWidth, width: document.documentElement.scrollWidth, all: visible() };
const value = [...table.querySelectorAll("thead button")].find(
  (button) => button.textContent.startsWith("errors"));
value.click(); value.click();
seen.most = [...table.querySelectorAll("tbody tr")].slice(0, 2).map(
  (row) => Number(row.cells[[...table.querySelectorAll("th")].indexOf(value.closest("th"))]
    .dataset.sort));
seen.sorted = value.closest("th").getAttribute("aria-sort");
const search = table.querySelector("input[type=search]");
search.value = "signs full"; search.dispatchEvent(new Event("input", { bubbles: true }));
seen.filtered = visible(); seen.row = first();
parent.document.body.dataset.seen = JSON.stringify(seen);
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = [path for path in map(shutil.which, BROWSERS) if path]
    if not found:
        pytest.skip("no chromium is installed")
    return found[0]


@pytest.fixture(scope="module")
def page(study, tmp_path_factory) -> Path:
    return write(study.frame, study.bench, study.facts, None, tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_works_and_fits(browser, page, tmp_path, width):
    probe = tmp_path / "probe.html"
    inner = html.escape(page.read_text().replace("</body>", PROBE + "</body>"))
    # A frame: a headless window is never narrower than 500 px.
    frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}"></iframe>'
    probe.write_text(f"<!doctype html><meta charset=utf-8><body>{frame}")
    dom, log = opened(browser, probe, tmp_path / "profile")
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, log
    seen = json.loads(html.unescape(found[1]))
    assert "CONSOLE" not in log, log
    assert seen["inner"] == width
    assert seen["width"] <= width
    assert seen["sorted"] == "descending"
    assert seen["most"][0] >= seen["most"][1] > 0
    assert 0 < seen["filtered"] < seen["all"]
    assert "signs" in seen["row"]


def test_it_opens_from_disk_without_an_error(browser, page, tmp_path):
    dom, log = opened(browser, page, tmp_path / "profile")
    assert "CONSOLE" not in log, log
    assert dom.count("<thead>") == dom.count('<figure class="table"') > 5
    assert "<button" in dom  # the script ran to where headings become buttons
    assert '<option value="Full fine-tuning">' in dom


def opened(browser: str, path: Path, profile: Path) -> tuple[str, str]:
    """The page's DOM after its scripts ran, and what the browser logged."""
    command = [browser, *FLAGS, f"--user-data-dir={profile}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr
