"""The page in a real browser: what a reader with a mouse, a keyboard, a telephone or a dark room gets."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.page.render import write_page
from empir_plugin.leaderboard.tree import Tree

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key WebDriver marks elements with, https://www.w3.org/TR/webdriver2/#elements."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="there is no Chromium with its chromedriver here"),
]

HTTP = build_opener(ProxyHandler({}))


class Browser:
    """A session of WebDriver, https://www.w3.org/TR/webdriver2/, which is HTTP with JSON: no package is needed."""

    def __init__(self, root: str, profile: Path) -> None:
        arguments = [*FLAGS, f"--user-data-dir={profile}"]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = send(root, "POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._root = f"{root}/session/{session['sessionId']}"

    def post(self, path: str, **body: Any) -> Any:
        return send(self._root, "POST", path, body)

    def open(self, page: Path, fragment: str = "") -> None:
        self.post("/url", url=page.as_uri() + fragment)

    def reload(self) -> None:
        """In the same renderer, which knows what it stored: what another one sees of it may come later."""
        self.post("/refresh")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.post("/execute/sync", script=script, args=list(arguments))

    def click(self, selector: str) -> None:
        element = self.post("/element", using="css selector", value=selector)[ELEMENT]
        self.post(f"/element/{element}/click")

    def type(self, selector: str, text: str) -> None:
        element = self.post("/element", using="css selector", value=selector)[ELEMENT]
        self.post(f"/element/{element}/value", text=text)

    def press(self, key: str) -> None:
        strokes = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.post("/actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def resize(self, width: int, height: int = 900) -> None:
        """The inside of the window, which a headless window may not be as narrow as."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)

    def prefer(self, **features: str) -> None:
        """Set ``prefers-...`` of the person who reads, and wait until the page was told: with its next frame."""
        told = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.devtools("Emulation.setEmulatedMedia", features=told)
        self.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.post("/goog/cdp/execute", cmd=command, params=parameters)

    def complaints(self) -> list[str]:
        """All the browser wrote to its console."""
        return [f"{row['level']}: {row['message']}" for row in self.post("/se/log", type="browser")]

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def quit(self) -> None:
        send(self._root, "DELETE", "")


def send(root: str, method: str, path: str, body: object = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = Request(root + path, content, {"Content-Type": "application/json"}, method=method)
    try:
        with HTTP.open(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except HTTPError as error:
        with error:
            raise RuntimeError(error.read().decode()) from error


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile, and its driver, until the block ends."""
    log = folder / "chromedriver.log"
    command = [str(CHROMEDRIVER), "--port=0"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as driver:
        try:
            browser = Browser(f"http://127.0.0.1:{_port(log)}", folder / "profile")
            try:
                yield browser
            finally:
                browser.quit()
        finally:
            driver.terminate()


def _port(log: Path) -> int:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        words = log.read_text().split("started successfully on port ")
        if len(words) > 1 and "." in words[1]:
            return int(words[1].split(".")[0])
        time.sleep(0.05)
    raise RuntimeError(f"chromedriver did not start: {log.read_text()}")


TAB, ENTER = "\ue004", "\ue007"
"""Keys, https://www.w3.org/TR/webdriver2/#keyboard-actions."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, make: Any) -> Path:
    """Three entries on one board, one of them without audit and costs, and one whose every text is hostile."""
    folder = tmp_path_factory.mktemp("page")
    tree = Tree(folder / "leaderboard")
    for model, clean, left in (("empir-cifar", 7523, 140), ("cifarconv-fp", 7701, 0), ("cifarconv-w2a2", 7254, 210)):
        record = make.record(make.autoattack(0, left), model=model, clean=clean)
        record.write(folder / f"{model}.json")
        files = Files((folder / f"{model}.json",))
        if model != "cifarconv-w2a2":
            identity = {"model_sha256": record.model["sha256"], "model_identity": 2}
            costs = {**identity, "storage_ratio": 1.77 if left else 1.0}
            (folder / f"{model}-costs.json").write_text(json.dumps(costs))
            make.audit(record, masked=left > 0).write(folder / f"{model}-audit.json")
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
    record = make.record(make.autoattack(0, 4500), attack, model="hostile", model_={"sha256": "ab"})
    record.write(folder / "hostile.json")
    add(tree, "hostile", Files((folder / "hostile.json",), paper=folder / "paper.toml"))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(session: Browser, page: Path) -> Iterator[Browser]:
    """The page as it opens for the first time, in a window of 1200 pixels; at the end, nothing was complained of."""
    session.resize(1200)
    session.prefer(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    session.open(page)
    session.run("localStorage.clear()")
    session.reload()
    session.complaints()
    yield session
    assert session.complaints() == []


def order(browser: Browser) -> list[str]:
    """The names in the table that are shown, from top to bottom."""
    script = "return [...document.querySelectorAll('.ranking tbody tr')].filter(r => r.checkVisibility())"
    return browser.run(script + ".map(r => r.querySelector('th a').textContent)")


def sorting(browser: Browser) -> dict[str, str]:
    script = "return Object.fromEntries([...document.querySelectorAll('[aria-sort]')]"
    return browser.run(script + ".map(h => [h.dataset.column, h.getAttribute('aria-sort')]))")


def head(column: str) -> str:
    return f"[data-column={column}] button"


HOSTILE, W2A2, EMPIR, FP = "Other2021Hostile", "Sen2020EMPIR_w2a2", "Sen2020EMPIR", "Sen2020EMPIR_fp"


def test_it_opens_ranked(browser: Browser) -> None:
    assert order(browser) == [HOSTILE, W2A2, EMPIR, FP]
    assert sorting(browser) == {"worst": "descending"}


def test_a_click_sorts_and_a_second_one_turns_it_round(browser: Browser) -> None:
    browser.click(head("clean"))
    assert (order(browser), sorting(browser)) == ([FP, HOSTILE, EMPIR, W2A2], {"clean": "descending"})
    browser.click(head("clean"))
    assert (order(browser), sorting(browser)) == ([W2A2, HOSTILE, EMPIR, FP], {"clean": "ascending"})
    browser.click(head("model"))
    assert (order(browser), sorting(browser)) == ([HOSTILE, EMPIR, FP, W2A2], {"model": "ascending"})


def test_what_was_not_measured_comes_last_in_both_directions(browser: Browser) -> None:
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
        assert strokes < 20, "the heading was not reached with Tab"
    browser.press(ENTER)
    assert (order(browser)[0], sorting(browser)) == (FP, {"clean": "descending"})
    browser.press(" ")
    assert (order(browser)[0], sorting(browser)) == (W2A2, {"clean": "ascending"})
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_filter_keeps_what_contains_the_text(browser: Browser) -> None:
    browser.type("input[type=search]", "W2A2")
    assert order(browser) == [W2A2]
    assert browser.run("return document.querySelector('.status').textContent") == "1 of 4 shown"
    parts = "return [...document.querySelectorAll('article, .chart g')]"
    assert browser.run(parts + ".filter(part => getComputedStyle(part).display !== 'none').length") == 2
    compared = "return document.querySelector('.compared').checkVisibility()"
    assert not browser.run(compared)  # no paper claims anything of this one
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
    browser.post("/url", url="about:blank")
    browser.open(page, "#cifar10-Linf-Sen2020EMPIR-records")
    assert browser.run("return document.querySelector('details[open]').closest('article').id").endswith("Sen2020EMPIR")


def test_everything_is_open_on_paper(browser: Browser) -> None:
    closed = "return document.querySelectorAll('details:not([open])').length"
    before = browser.run(closed)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert (before > 0, browser.run(closed)) == (True, 0)
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(closed) == before


TEXTS = """
const found = [];
const opaque = colour => !/^rgba\\(.*, 0\\)$/.test(colour);
for (const element of document.body.querySelectorAll("*")) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || !element.checkVisibility() || element.closest("title, desc")) continue;
  const style = getComputedStyle(element);
  let behind = element;
  while (behind.parentElement && !opaque(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const colour = element instanceof SVGElement ? style.fill : style.color;
  found.push([element.textContent.trim().slice(0, 40), colour, getComputedStyle(behind).backgroundColor]);
}
return found;
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
def test_every_text_is_readable_in_both_themes(scheme: str, page_is_dark: bool, browser: Browser) -> None:
    browser.prefer(prefers_color_scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    texts = browser.run(TEXTS)
    assert len(texts) > 200
    assert (luminance(browser.run("return getComputedStyle(document.body).backgroundColor")) < 0.2) is page_is_dark
    assert [row for row in texts if contrast(row[1], row[2]) < 4.5] == []


def theme(browser: Browser) -> tuple[bool, str]:
    """Whether the page is dark, and what the button says of it."""
    dark = luminance(browser.run("return getComputedStyle(document.body).backgroundColor")) < 0.2
    return dark, browser.run("return document.getElementById('theme').getAttribute('aria-pressed')")


def test_the_theme_is_what_the_reader_prefers_until_he_chooses_and_is_remembered(browser: Browser) -> None:
    assert theme(browser) == (False, "false")
    browser.prefer(prefers_color_scheme="dark")
    assert theme(browser) == (True, "true")
    browser.prefer(prefers_color_scheme="light")
    browser.click("#theme")
    assert theme(browser) == (True, "true")
    browser.reload()
    assert theme(browser) == (True, "true")
    browser.click("#theme")
    assert theme(browser) == (False, "false")


def test_the_theme_changes_without_storage_too(browser: Browser, page: Path) -> None:
    browser.post("/url", url="data:text/html;base64," + base64.b64encode(page.read_bytes()).decode())
    denied = "try { localStorage; return false } catch { return true }"
    assert browser.run(denied)
    browser.click("#theme")
    assert theme(browser) == (True, "true")
    browser.click(head("clean"))
    assert order(browser)[0] == FP


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_is_no_wider_than_the_window(width: int, browser: Browser) -> None:
    browser.resize(width)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    inside, clipped = browser.run("const d = document.documentElement; return [d.clientWidth, d.scrollWidth]")
    assert width - 20 <= inside <= width  # the bar that scrolls takes a few
    assert clipped == inside


def test_the_whole_table_is_in_sight_on_a_usual_screen(browser: Browser) -> None:
    browser.resize(1280)
    script = "const box = document.querySelector('.scroll'); return box.scrollWidth - box.clientWidth"
    assert browser.run(script) == 0


def test_names_in_charts_cover_no_other(browser: Browser) -> None:
    script = """
    return [...document.querySelectorAll('.chart')].map(chart => [...chart.querySelectorAll('.label')].map(label => {
      const box = label.getBoundingClientRect(), all = chart.getBoundingClientRect(), x = all.left, y = all.top;
      return [box.left - x, box.top - y, box.right - x, box.bottom - y, all.width, all.height];
    }))"""
    charts = browser.run(script)
    assert [len(labels) for labels in charts] == [4, 2]
    for labels in charts:
        assert all(row[0] >= 0 and row[2] <= row[4] and row[3] <= row[5] for row in labels)
        # Boxes are as high as the line; letters are not: two pixels may be shared.
        meets = [
            (one, other)
            for index, one in enumerate(labels)
            for other in labels[:index]
            if one[0] < other[2] and other[0] < one[2] and one[1] + 2 < other[3] and other[1] + 2 < one[3]
        ]
        assert meets == []


def test_motion_is_reduced_for_those_who_ask(browser: Browser) -> None:
    smooth = "return getComputedStyle(document.documentElement).scrollBehavior"
    assert browser.run(smooth) == "smooth"
    browser.prefer(prefers_reduced_motion="reduce")
    assert browser.run(smooth) == "auto"


def test_nothing_was_loaded_and_nothing_hostile_ran(browser: Browser) -> None:
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run("return typeof hacked") == "undefined"


def test_a_script_that_is_not_the_page_s_own_would_not_run(session: Browser, page: Path) -> None:
    session.open(page)
    planted = "const s = document.createElement('script'); s.textContent = 'hacked = 1'; document.body.append(s)"
    session.run(planted + "; return 0")
    assert session.run("return typeof hacked") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in session.complaints())
