"""The page in a real browser: what its script does, without an error."""

import json
import shutil
from pathlib import Path

import pytest

from sbs_jax.reports.make import make_report
from tests.reports import synthetic

selenium = pytest.importorskip(
    "selenium", reason="selenium is not installed: pip install -e '.[browser]'"
)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="no chromium and chromedriver found: apt-get install chromium chromium-driver",
    ),
]
EXAMPLES = 10_000
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1280,900",
)  # fmt: skip


def _start(profile, javascript=True):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if not javascript:
        off = {"profile.managed_default_content_settings.javascript": 2}
        options.add_experimental_option("prefs", off)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(DRIVER))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of 10,000 examples, of which the first hold dangerous texts."""
    folder = synthetic.write_sweep(
        tmp_path_factory.mktemp("browser") / "s",
        {"METHOD": ("standard", "sbs"), "SEED": (0,)},
        examples=EXAMPLES,
    )
    for path in folder.glob("runs/*/predictions/test.jsonl"):
        lines = path.read_text().splitlines()
        for number, nasty in enumerate(synthetic.NASTY):
            row = json.loads(lines[number])
            for name in ("input", "prediction", "rationale", "llm_rationale"):
                if name in row:
                    row[name] += f" {nasty}"
            lines[number] = json.dumps(row)
        path.write_text("\n".join(lines) + "\n")
    rows = {
        path.parent.parent.name.split(",")[0]: [
            json.loads(line) for line in path.read_text().splitlines()
        ]
        for path in folder.glob("runs/*/predictions/test.jsonl")
    }
    make_report([folder])
    return folder / "report" / "report.html", rows["method=standard"], rows["method=sbs"]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    driver = _start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, report):
    """The page, opened anew in light colours; no error may have been logged at the end."""
    chromium.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "light"}]},
    )
    chromium.get(Path(report[0]).as_uri())
    chromium.execute_script("localStorage.clear()")
    chromium.get(Path(report[0]).as_uri())
    yield chromium
    assert chromium.get_log("browser") == []


def _find(browser, selector):
    return browser.find_element("css selector", selector)


def _text(browser, selector):
    return browser.execute_script(
        "return document.querySelector(arguments[0]).textContent", selector
    )


def _press(browser, keys):
    browser.switch_to.active_element.send_keys(keys)


def _chosen(browser):
    return _text(browser, "#detail h3")


def test_all_examples_are_listed_and_few_drawn(browser, report):
    assert _text(browser, "#count") == "10,000 of 10,000"
    rows = browser.find_elements("css selector", ".row")
    assert 10 < len(rows) < 60
    assert [_find(browser, f"#{m}").get_attribute("value") for m in ("first", "second")] == [
        "0", "1",
    ]  # fmt: skip
    browser.execute_script("document.getElementById('list').scrollTop = 5000 * 44")
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
    shown = browser.execute_script("return [...document.querySelectorAll('.row')].map(r => r.id)")
    assert "example-5000" in shown
    assert len(shown) < 60
    _find(browser, "#example-5000").click()
    assert _chosen(browser) == "test-5000"
    assert report[1][5000]["input"] in _text(browser, "#detail")


def test_filters_show_what_they_say(browser, report):
    _, standard, sbs = report
    pairs = [(a["score"], b["score"], a["prediction"] != b["prediction"])
             for a, b in zip(standard, sbs, strict=True)]  # fmt: skip
    expected = [
        EXAMPLES,
        sum(a for a, _, _ in pairs),
        sum(not a for a, _, _ in pairs),
        sum(b for _, b, _ in pairs),
        sum(not b for _, b, _ in pairs),
        sum(b and not a for a, b, _ in pairs),
        sum(a and not b for a, b, _ in pairs),
        sum(differ for _, _, differ in pairs),
        sum(not a and not b for a, b, _ in pairs),
    ]
    body = _find(browser, "body")
    for number, count in enumerate(expected, start=1):
        body.send_keys(str(number))
        assert _text(browser, "#count") == f"{count:,} of 10,000"
    # The last one: both are wrong, and the marks and the detail say so.
    assert set(_text(browser, ".marks")) == {"✗"}
    assert _text(browser, "#detail .answers").count("✗ wrong") == 2


def test_search_finds_words_in_every_text(browser, report):
    _, _, sbs = report
    search = _find(browser, "#search")
    search.send_keys("MEI 42")
    expected = [row for row in sbs if "mei" in json.dumps(row).lower() and "42" in json.dumps(row)]
    found = int(_text(browser, "#count").split(" ")[0].replace(",", ""))
    # The other run's answer may hold a 42, too.
    assert len(expected) * 0.9 < found < len(expected) * 1.5
    search.clear()
    search.send_keys("nothing has this")
    assert _text(browser, "#count") == "0 of 10,000"
    assert "No example passes" in _text(browser, "#detail")
    search.clear()
    search.send_keys("test-7777")
    assert _text(browser, "#count") == "1 of 10,000"
    assert _chosen(browser) == "test-7777"


def test_the_keyboard_alone_will_do(browser):
    from selenium.webdriver.common.keys import Keys

    _press(browser, "jjj")
    assert _chosen(browser) == "test-3"
    _press(browser, "k")
    assert _chosen(browser) == "test-2"
    _press(browser, Keys.ARROW_DOWN)
    assert _chosen(browser) == "test-3"
    _press(browser, Keys.END)
    assert _chosen(browser) == "test-9999"
    _press(browser, Keys.PAGE_UP)
    assert "test-9900" < _chosen(browser) < "test-9999"
    _press(browser, Keys.HOME)
    assert _chosen(browser) == "test-0"
    active = "return document.activeElement.getAttribute('aria-activedescendant')"
    assert browser.execute_script(active) == "example-0"

    first, second = _text(browser, "#detail .answers").split("B:")
    assert "standard" in first
    _press(browser, "x")
    first, second = _text(browser, "#detail .answers").split("B:")
    assert "standard" in second

    _press(browser, "/")
    assert browser.switch_to.active_element.get_attribute("id") == "search"
    _press(browser, "test-44 jt1x")  # Letters and digits are text here.
    assert _text(browser, "#count") == "0 of 10,000"
    _press(browser, Keys.ESCAPE)
    assert _text(browser, "#count") == "10,000 of 10,000"
    assert browser.switch_to.active_element.get_attribute("id") == "list"
    _press(browser, "/")
    _press(browser, "test-4444")
    _press(browser, Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "list"
    assert _chosen(browser) == "test-4444"

    keys = _find(browser, "#keys")
    assert keys.get_attribute("open") is None
    _press(browser, "?")
    assert keys.get_attribute("open") is not None


def test_a_chosen_example_stays_chosen_where_it_passes(browser, report):
    place = next(i for i, row in enumerate(report[1]) if i > 50 and row["score"])
    search = _find(browser, "#search")
    search.send_keys(f"test-{place}")
    search.clear()
    search.send_keys(" ")
    _find(browser, "body").send_keys("2")
    assert _chosen(browser) == f"test-{place}"


def test_differences_between_rationales_are_marked(browser, report):
    search = _find(browser, "#search")
    place = next(
        i
        for i, row in enumerate(report[2])
        if i > 50 and not row["score"] and int(row["target"]) > 0  # A minus is a sign of its own.
    )
    search.send_keys(f"test-{place}")
    row = report[2][place]
    left, right = browser.execute_script(
        "return [...document.querySelectorAll('.rationales .text-box')].map((b) => b.textContent)"
    )
    assert (left, right) == (row["rationale"], row["llm_rationale"])
    student, teacher = (
        browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((m) => m.textContent)",
            f".rationales mark.{kind}",
        )
        for kind in ("student", "teacher")
    )
    assert "has" in student
    assert "starts with" in teacher
    # The wrong answer against the right one; what both have is not marked.
    assert row["prediction"] in student[-1]
    assert row["target"] in teacher[-1]
    assert all("apples" not in text for text in student)


def test_what_is_not_marked_is_what_both_have(browser):
    rest = """
        return [...document.querySelectorAll('.rationales .text-box')].map((box) => {
          const copy = box.cloneNode(true);
          copy.querySelectorAll('mark').forEach((mark) => mark.remove());
          return copy.textContent.replace(/\\s+/g, '');
        });
    """
    body = _find(browser, "body")
    for _ in range(30):
        student, teacher = browser.execute_script(rest)
        assert student == teacher != ""
        body.send_keys("j")


def test_dangerous_texts_are_shown_and_run_nothing(browser):
    assert browser.title.startswith("s – ")
    body = _find(browser, "body")
    shown = []
    for _ in synthetic.NASTY:
        shown.append(_text(browser, "#detail"))
        body.send_keys("j")
    assert "</script><script>document.title='broken'</script>" in shown[0]
    assert "<b onclick=x>bold</b> & &amp;" in shown[1]
    assert "control ␀␇␛[31m and \ufffd half a character" in shown[2]
    assert "⟨U+202E⟩right to left" in shown[3]
    assert browser.execute_script("return document.querySelector('#detail b')") is None


def test_colours_follow_the_system_and_the_button(browser):
    def ground():
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    button = _find(browser, "#theme")
    assert (ground(), button.text) == ("rgb(255, 255, 255)", "dark mode")
    button.click()
    dark = ground()
    assert dark == "rgb(20, 23, 27)"
    browser.refresh()
    assert (ground(), _find(browser, "#theme").text) == (dark, "light mode")
    _find(browser, "body").send_keys("t")
    assert ground() == "rgb(255, 255, 255)"
    browser.execute_script("localStorage.clear()")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    browser.refresh()
    assert ground() == dark
    # Figures go along.
    ink = browser.execute_script(
        "return getComputedStyle(document.querySelector('figure svg text, figure svg g use, "
        "figure svg path')).fill"
    )
    assert ink != ""


def test_nothing_is_wider_than_a_narrow_window(browser):
    try:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
        )
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 360
        _find(browser, "body").send_keys("j")
        assert _chosen(browser) == "test-1"
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_can_be_read_without_javascript(report, tmp_path):
    driver = _start(tmp_path, javascript=False)
    try:
        driver.get(Path(report[0]).as_uri())
        shown = _find(driver, "body").text
        assert "Reading examples needs JavaScript" in shown
        assert "89.51" in shown
        assert "standard" in shown
        assert _find(driver, "figure svg").size["height"] > 100
        assert not _find(driver, "#browser").is_displayed()
        assert not _find(driver, "#theme").is_displayed()
    finally:
        driver.quit()
