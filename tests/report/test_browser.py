"""The page in a real browser: opens from disk, no error, sorts, filters, never overflows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sparse_transfer.report.write import write

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "study" / "index.html"
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
# Every probe runs in the page after its own script and leaves what it saw in `seen`.
HELP = """
const visible = (table) => [...table.querySelectorAll("tbody tr:not([hidden])")];
const texts = (rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent.trim()));
const changed = (box, value) => {
  box.value = value; box.dispatchEvent(new Event("input", { bubbles: true }));
};
"""
SIZES = "seen.inner = innerWidth; seen.width = document.documentElement.scrollWidth;"
NAMES = """
const name = (node) => node.getAttribute("aria-label") || node.getAttribute("alt")
  || node.textContent.trim();
const nodes = [...document.querySelectorAll(
  "svg, img, a, button, input, select, nav, [role=region], [tabindex]")];
seen.named = nodes.filter(name).length;
seen.unnamed = nodes.filter((node) => !name(node)).map((node) => node.outerHTML.slice(0, 100));
seen.broken = [...document.querySelectorAll("a[href^='#']")].map((link) => link.hash.slice(1))
  .filter((id) => !document.getElementById(id));
seen.contents = [...document.querySelectorAll("nav a")].map((link) => link.textContent);
seen.sections = [...document.querySelectorAll("section:not(#verdict) h2")].map(
  (head) => head.textContent);
"""
SORTS = """
seen.tables = [...document.querySelectorAll("figure.table")].map((table) => ({
  id: table.id,
  columns: [...table.querySelectorAll("thead th")].map((head, column) => {
    const button = head.querySelector("button");
    const look = () => ({
      sort: head.getAttribute("aria-sort"),
      cells: visible(table).map((row) => [
        row.cells[column].dataset.sort ?? null, row.cells[column].textContent.trim()]),
    });
    const before = texts(visible(table)).join();
    button.click(); const rising = look();
    button.click(); const falling = look();
    button.click();
    return { rising, falling, back: texts(visible(table)).join() === before,
             focusable: button.tabIndex === 0 && button.type === "button",
             sorted: head.hasAttribute("aria-sort") };
  }),
}));
"""
FILTERS = """
const table = document.querySelector("#tasks-main");
const [mode, task, method] = table.querySelectorAll("select");
const count = () => [visible(table).length, table.querySelector("output").textContent];
const reset = table.querySelector("form button");
seen.all = count(); seen.hidden = reset.hidden;
seen.options = [mode, task, method].map((choice) => [...choice.options].map((one) => one.value));
changed(mode, "Full fine-tuning"); seen.one = count();
changed(task, "signs"); seen.two = count();
changed(method, "gmp"); seen.three = count(); seen.rows = texts(visible(table));
changed(table.querySelector("input"), "95 GMP"); seen.four = count();
seen.resettable = !reset.hidden;
seen.labels = [...table.querySelectorAll("form input, form select")].every(
  (box) => box.getAttribute("aria-label"));
reset.click();
await new Promise((done) => setTimeout(done, 50));
seen.again = count(); seen.hidden_again = reset.hidden;
"""
COLOURS = """
const back = (node) => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return colour;
  }
};
seen.pairs = [...document.querySelectorAll("td, td small, th button, .note, .held, figcaption, a")]
  .filter((node) => node.textContent.trim())
  .map((node) => [getComputedStyle(node).color, back(node)].join("|"));
seen.pairs = [...new Set(seen.pairs)];
"""
PRINTED = """
seen.cut = [...document.querySelectorAll(".scroll")].filter(
  (box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.getAttribute("aria-label"));
seen.link = getComputedStyle(document.querySelector(".files a"), "::after").content;
seen.controls = getComputedStyle(document.querySelector(".filter")).display;
"""


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
def test_the_page_fits(browser, page, tmp_path, width):
    seen = probed(browser, page.read_text(), tmp_path, SIZES, width)
    assert seen["inner"] == width
    assert seen["width"] <= width


@pytest.mark.parametrize("width", [1440, 390])
def test_the_example_in_the_docs_fits(browser, tmp_path, width):
    text = EXAMPLE.read_text(encoding="utf-8")
    assert probed(browser, text, tmp_path, SIZES, width)["width"] <= width


def test_what_can_be_reached_has_a_name(browser, page, tmp_path):
    seen = probed(browser, page.read_text(), tmp_path, NAMES)
    assert seen["named"] > 40
    assert seen["unnamed"] == [] and seen["broken"] == []
    assert seen["contents"] == seen["sections"]


def test_every_column_of_every_table_sorts_both_ways_and_back(browser, page, tmp_path):
    tables = probed(browser, page.read_text(), tmp_path, SORTS)["tables"]
    assert len(tables) > 5
    kinds = set()
    for table in tables:
        for number, column in enumerate(table["columns"]):
            where = f"{table['id']}, column {number}"
            assert column["back"] and column["focusable"] and not column["sorted"], where
            for way, word in (("rising", "ascending"), ("falling", "descending")):
                assert column[way]["sort"] == word
                cells = column[way]["cells"]
                filled = [cell for cell in cells if cell[1]]
                assert cells[: len(filled)] == filled, f"{where}: empty cells come last"
                keys = [natural(*cell) for cell in filled]
                kinds |= {type(cell[0]) for cell in filled}
                assert keys == sorted(keys, reverse=way == "falling"), where
    assert kinds == {str, type(None)}  # numbers and texts were both there


def test_filters_work_together_are_counted_and_reset(browser, page, tmp_path):
    seen = probed(browser, page.read_text(), tmp_path, FILTERS)
    total = seen["all"][0]
    assert seen["all"] == seen["again"] == [total, f"{total} rows"]
    assert seen["options"][2] == ["", "acdc", "dense", "fggp", "gmp"]
    counts = [seen[name][0] for name in ("all", "one", "two", "three", "four")]
    assert counts == [112, 35, 7, 2, 1]
    assert seen["four"][1] == "1 of 112 rows"
    assert all(row[:3] == ["Full fine-tuning", "signs", "gmp"] for row in seen["rows"])
    assert seen["hidden"] and seen["resettable"] and seen["hidden_again"] and seen["labels"]


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_text_stands_out_from_its_ground(browser, page, tmp_path, scheme):
    flag = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    pairs = probed(browser, page.read_text(), tmp_path, COLOURS, 1440, flag)["pairs"]
    pairs = [[rgb(colour) for colour in pair.split("|")] for pair in pairs]
    assert len(pairs) >= 3
    assert (luminance(pairs[0][1]) < 0.2) == (scheme == "dark")
    for text, ground in pairs:
        light, dark = sorted([luminance(text), luminance(ground)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)  # WCAG 2, level AA


def test_nothing_is_cut_on_paper(browser, page, tmp_path):
    """The print style at the width of A4, landscape, inside its margins."""
    text = page.read_text().replace("@media print", "@media all")
    seen = probed(browser, text, tmp_path, PRINTED, 1016)
    assert seen["cut"] == []
    assert seen["controls"] == "none"
    assert re.search(r"\.(csv|svg)", seen["link"])  # a printed figure says which file it is


def test_it_opens_from_disk_without_an_error(browser, page, tmp_path):
    dom, log = opened(browser, page, tmp_path / "profile")
    assert "CONSOLE" not in log, log
    assert dom.count("<thead>") == dom.count('<figure class="table"') > 5
    assert "<button" in dom  # the script ran to where headings become buttons
    assert '<option value="Full fine-tuning">' in dom


def probed(
    browser: str, page: str, folder: Path, script: str, width: int = 1440, *flags: str
) -> dict[str, Any]:
    """What a script sees in the page at a width, in a frame: windows are 500 px wide or more."""
    probe = f"""<script type="module">{HELP} const seen = {{}}; {script}
      parent.document.body.dataset.seen = JSON.stringify(seen);</script>"""
    inner = html.escape(page.replace("</body>", probe + "</body>"))
    frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}"></iframe>'
    path = folder / "probe.html"
    path.write_text(
        '<!doctype html><meta charset=utf-8><meta name="color-scheme" content="light dark">'
        f"<body>{frame}"
    )
    dom, log = opened(browser, path, folder / "profile", *flags)
    assert "CONSOLE" not in log, log
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, log
    return json.loads(html.unescape(found[1]))


def natural(sort: str | None, text: str) -> tuple[Any, ...]:
    """What a cell is sorted by: its number, or its text with the numbers in it as numbers."""
    if sort is not None:
        return (float(sort.replace("Infinity", "inf")),)
    parts = re.split(r"(\d+)", text.lower())
    return tuple((0, int(one), "") if one.isdigit() else (1, 0, one) for one in parts if one)


def rgb(colour: str) -> list[float]:
    return [float(value) / 255 for value in re.findall(r"[\d.]+", colour)[:3]]


def luminance(colour: list[float]) -> float:
    """Relative luminance as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def opened(browser: str, path: Path, profile: Path, *flags: str) -> tuple[str, str]:
    """The page's DOM after its scripts ran, and what the browser logged."""
    command = [browser, *FLAGS, *flags, f"--user-data-dir={profile}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr
