"""The page in a real browser: sorting, filter, keyboard, themes, contrast, layout, and no foreign code."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.page.render import write_page
from empir_plugin.leaderboard.tree import Tree

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""Without the last flags, Chromium connects to the internet at every start."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(not CHROMEDRIVER, reason="needs chromedriver: apt-get install chromium-driver"),
]


class Browser:
    """What the tests do in Chromium, through Selenium's driver."""

    def __init__(self, driver: Chrome) -> None:
        self._driver = driver

    def open(self, url: str) -> None:
        self._driver.get(url)

    def reload(self) -> None:
        """Reload in the same renderer, which sees at once what it stored."""
        self._driver.refresh()

    def run(self, script: str) -> Any:
        """The result of a script; a promise is awaited."""
        return self._driver.execute_script(script)

    def click(self, selector: str) -> None:
        self._driver.find_element("css selector", selector).click()

    def type(self, selector: str, text: str) -> None:
        self._driver.find_element("css selector", selector).send_keys(text)

    def press(self, key: str) -> None:
        """Press a key, wherever the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self._driver).send_keys(key).perform()

    def resize(self, width: int, height: int = 900) -> None:
        """Set the size of the viewport, which may be narrower than a window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def emulate_media(self, **features: str) -> None:
        """Set media features such as ``prefers-color-scheme``, and wait two frames until the page has applied them."""
        settings = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": settings})
        self.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def console_messages(self) -> list[str]:
        """Everything on the browser's console since the last call."""
        return [f"{row['level']}: {row['message']}" for row in self._driver.get_log("browser")]


TAB, ENTER = "\ue004", "\ue007"
"""Keys, https://www.w3.org/TR/webdriver2/#keyboard-actions."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, make: Any) -> Path:
    """Three entries on one board, one of them without audit and costs, and a fourth whose texts inject markup."""
    folder = tmp_path_factory.mktemp("page")
    tree = Tree(folder / "leaderboard")
    for model, clean, robust in (("empir-cifar", 7523, 140), ("cifarconv-fp", 7701, 0), ("cifarconv-w2a2", 7254, 210)):
        record = make.record(make.autoattack(0, robust), model=model, clean=clean)
        record.write(folder / f"{model}.json")
        files = Files((folder / f"{model}.json",))
        if model != "cifarconv-w2a2":
            costs = make.overhead(record)
            (folder / f"{model}-costs.json").write_text(json.dumps(costs))
            make.audit(record, masked=robust > 0).write(folder / f"{model}-audit.json")
            files = Files(files.records, folder / f"{model}-audit.json", folder / f"{model}-costs.json")
        add(tree, model, files)
    _add_hostile(tree, folder, make)
    write_page(tree, folder / "page.html")
    return folder / "page.html"


def _add_hostile(tree: Tree, folder: Path, make: Any) -> None:
    hostile = "\"><img src=x onerror='hacked=1'><script>hacked=1</script>"
    paper = f'title = {json.dumps(hostile)}\nlink = "https://example.org"\nauthors = ""\nvenue = ""\n[[models]]\n'
    model = f'model = "hostile"\nstem = "Other2021Hostile"\ndataset = "cifar10"\narchitecture = {json.dumps(hostile)}\n'
    (folder / "paper.toml").write_text(paper + model)
    attack = make.attack(hostile, make.robust(0, 4000))
    record = make.record(make.autoattack(0, 4500), attack, model="hostile", model_={"sha256": "ab" * 32})
    record.write(folder / "hostile.json")
    add(tree, "hostile", Files((folder / "hostile.json",), paper=folder / "paper.toml"))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium with an empty profile."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER)) as driver:
        yield Browser(driver)


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Iterator[Browser]:
    """The page on a first visit, 1200 pixels wide; after the test, the console must be empty."""
    chromium.resize(1200)
    chromium.emulate_media(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    chromium.open(page.as_uri())
    chromium.run("localStorage.clear()")
    chromium.reload()
    chromium.console_messages()
    yield chromium
    assert chromium.console_messages() == []


def order(browser: Browser) -> list[str]:
    """The names in the visible rows of the table, from top to bottom."""
    script = "return [...document.querySelectorAll('.ranking tbody tr')].filter(r => r.checkVisibility())"
    return browser.run(script + ".map(r => r.querySelector('th a').textContent)")


def sorting(browser: Browser) -> dict[str, str]:
    script = "return Object.fromEntries([...document.querySelectorAll('[aria-sort]')]"
    return browser.run(script + ".map(h => [h.dataset.column, h.getAttribute('aria-sort')]))")


def head(column: str) -> str:
    return f"[data-column={column}] button"


HOSTILE, W2A2, EMPIR, FP = "Other2021Hostile", "Sen2020EMPIR_w2a2", "Sen2020EMPIR", "Sen2020EMPIR_fp"


def test_the_table_opens_ranked(browser: Browser) -> None:
    assert order(browser) == [HOSTILE, W2A2, EMPIR, FP]
    assert sorting(browser) == {"worst": "descending"}


def test_a_click_sorts_and_a_second_one_reverses(browser: Browser) -> None:
    browser.click(head("clean"))
    assert (order(browser), sorting(browser)) == ([FP, HOSTILE, EMPIR, W2A2], {"clean": "descending"})
    browser.click(head("clean"))
    assert (order(browser), sorting(browser)) == ([W2A2, HOSTILE, EMPIR, FP], {"clean": "ascending"})
    browser.click(head("model"))
    assert (order(browser), sorting(browser)) == ([HOSTILE, EMPIR, FP, W2A2], {"model": "ascending"})


def test_missing_values_sort_last_in_both_directions(browser: Browser) -> None:
    browser.click(head("storage"))
    assert (order(browser), sorting(browser)) == ([FP, EMPIR, HOSTILE, W2A2], {"storage": "ascending"})
    browser.click(head("storage"))
    assert (order(browser), sorting(browser)) == ([EMPIR, FP, HOSTILE, W2A2], {"storage": "descending"})


def test_the_keyboard_sorts(browser: Browser) -> None:
    focused = "return document.activeElement.closest('th')?.dataset.column"
    strokes = 0
    while browser.run(focused) != "clean":
        browser.press(TAB)
        strokes += 1
        assert strokes < 20, "Tab does not reach the heading"
    browser.press(ENTER)
    assert (order(browser)[0], sorting(browser)) == (FP, {"clean": "descending"})
    browser.press(" ")
    assert (order(browser)[0], sorting(browser)) == (W2A2, {"clean": "ascending"})
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_filter_keeps_entries_that_contain_the_text(browser: Browser) -> None:
    browser.type("input[type=search]", "W2A2")
    assert order(browser) == [W2A2]
    assert browser.run("return document.querySelector('.status').textContent") == "1 of 4 shown"
    parts = "return [...document.querySelectorAll('article, .chart g')]"
    assert browser.run(parts + ".filter(part => getComputedStyle(part).display !== 'none').length") == 2
    compared = "return document.querySelector('.compared').checkVisibility()"
    assert not browser.run(compared)  # no paper makes a claim about this entry
    browser.run("const i = document.querySelector('input'); i.value = ''; i.dispatchEvent(new Event('input'))")
    assert (len(order(browser)), browser.run(compared)) == (4, True)
    assert browser.run("return document.querySelector('.status').textContent") == ""


def test_a_record_opens_by_its_link_and_by_the_keyboard(browser: Browser) -> None:
    opened = "return [...document.querySelectorAll('article details')].filter(d => d.open).length"
    assert browser.run(opened) == 0
    browser.click(".ranking tbody tr:nth-child(3) td:last-child a")
    assert browser.run(opened) == 1
    shown = "const d = document.querySelector('details[open]'); return [d.closest('article').id, d.textContent]"
    where, text = browser.run(shown)
    assert where == "cifar10-Linf-Sen2020EMPIR"
    assert "runs/empir-cifar.json" in text
    browser.run("document.querySelector('details[open] summary').focus()")
    browser.press(ENTER)
    assert browser.run(opened) == 0


def test_an_address_with_a_record_opens_it(browser: Browser, page: Path) -> None:
    browser.open("about:blank")
    browser.open(page.as_uri() + "#cifar10-Linf-Sen2020EMPIR-records")
    assert browser.run("return document.querySelector('details[open]').closest('article').id").endswith("Sen2020EMPIR")


def test_printing_opens_everything(browser: Browser) -> None:
    closed = "return document.querySelectorAll('details:not([open])').length"
    before = browser.run(closed)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert (before > 0, browser.run(closed)) == (True, 0)
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(closed) == before


TEXTS = """
const texts = [];
const opaque = colour => !/^rgba\\(.*, 0\\)$/.test(colour);
for (const element of document.body.querySelectorAll("*")) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || !element.checkVisibility() || element.closest("title, desc")) continue;
  const style = getComputedStyle(element);
  let behind = element;
  while (behind.parentElement && !opaque(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const colour = element instanceof SVGElement ? style.fill : style.color;
  texts.push([element.textContent.trim().slice(0, 40), colour, getComputedStyle(behind).backgroundColor]);
}
return texts;
"""


def luminance(colour: str) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance, of ``rgb(...)``."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(colour: str, behind: str) -> float:
    dark, light = sorted([luminance(colour), luminance(behind)])
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_known_colours() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(("scheme", "page_is_dark"), [("light", False), ("dark", True)])
def test_text_has_enough_contrast_in_both_themes(scheme: str, page_is_dark: bool, browser: Browser) -> None:
    browser.emulate_media(prefers_color_scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    texts = browser.run(TEXTS)
    assert len(texts) > 200
    assert (luminance(browser.run("return getComputedStyle(document.body).backgroundColor")) < 0.2) is page_is_dark
    assert [row for row in texts if contrast(row[1], row[2]) < 4.5] == []


def theme(browser: Browser) -> tuple[bool, str]:
    """Whether the page is dark, and the state of the button."""
    dark = luminance(browser.run("return getComputedStyle(document.body).backgroundColor")) < 0.2
    return dark, browser.run("return document.getElementById('theme').getAttribute('aria-pressed')")


def test_the_theme_follows_the_system_until_the_reader_chooses_and_is_remembered(browser: Browser) -> None:
    assert theme(browser) == (False, "false")
    browser.emulate_media(prefers_color_scheme="dark")
    assert theme(browser) == (True, "true")
    browser.emulate_media(prefers_color_scheme="light")
    browser.click("#theme")
    assert theme(browser) == (True, "true")
    browser.reload()
    assert theme(browser) == (True, "true")
    browser.click("#theme")
    assert theme(browser) == (False, "false")


def test_the_theme_changes_even_without_storage(browser: Browser, page: Path) -> None:
    browser.open("data:text/html;base64," + base64.b64encode(page.read_bytes()).decode())
    denied = "try { localStorage; return false } catch { return true }"
    assert browser.run(denied)
    browser.click("#theme")
    assert theme(browser) == (True, "true")
    browser.click(head("clean"))
    assert order(browser)[0] == FP


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_does_not_scroll_sideways(width: int, browser: Browser) -> None:
    browser.resize(width)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    inside, content = browser.run("const d = document.documentElement; return [d.clientWidth, d.scrollWidth]")
    assert width - 20 <= inside <= width  # a scroll bar takes a few pixels
    assert content == inside


def test_the_whole_table_fits_a_common_screen(browser: Browser) -> None:
    browser.resize(1280)
    script = "const box = document.querySelector('.scroll'); return box.scrollWidth - box.clientWidth"
    assert browser.run(script) == 0


def test_labels_in_charts_do_not_overlap(browser: Browser) -> None:
    script = """
    return [...document.querySelectorAll('.chart')].map(chart => [...chart.querySelectorAll('.label')].map(label => {
      const box = label.getBoundingClientRect(), all = chart.getBoundingClientRect(), x = all.left, y = all.top;
      return [box.left - x, box.top - y, box.right - x, box.bottom - y, all.width, all.height];
    }))"""
    charts = browser.run(script)
    assert [len(labels) for labels in charts] == [4, 2, 2]
    for labels in charts:
        assert all(row[0] >= 0 and row[2] <= row[4] and row[3] <= row[5] for row in labels)
        # Boxes are as high as the line; letters are not: two pixels may be shared.
        overlaps = [
            (one, other)
            for index, one in enumerate(labels)
            for other in labels[:index]
            if one[0] < other[2] and other[0] < one[2] and one[1] + 2 < other[3] and other[1] + 2 < one[3]
        ]
        assert overlaps == []


def test_reduced_motion_is_respected(browser: Browser) -> None:
    smooth = "return getComputedStyle(document.documentElement).scrollBehavior"
    assert browser.run(smooth) == "smooth"
    browser.emulate_media(prefers_reduced_motion="reduce")
    assert browser.run(smooth) == "auto"


def test_nothing_is_loaded_and_no_injected_script_runs(browser: Browser) -> None:
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run("return typeof hacked") == "undefined"


def test_a_script_that_is_not_the_pages_own_does_not_run(chromium: Browser, page: Path) -> None:
    chromium.open(page.as_uri())
    planted = "const s = document.createElement('script'); s.textContent = 'hacked = 1'; document.body.append(s)"
    chromium.run(planted + "; return 0")
    assert chromium.run("return typeof hacked") == "undefined"
    assert any("Content Security Policy" in message for message in chromium.console_messages())
