"""The page in a real browser, from a file, without a network: it draws, answers, fits a phone, and follows the dark."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.chromium import chromium, needs_chromium

from trainonce.report import read_groups, write_report

DESKTOP, PHONE = (1000, 900), (360, 780)
MIDDLE_OF_A_POINT = """
const figure = document.getElementById(arguments[0]);
const point = figure.querySelectorAll('.mark-symbol[role], g.mark-symbol')[0].querySelectorAll('path')[arguments[1]];
point.scrollIntoView({block: 'center'});
const box = point.getBoundingClientRect();
return [box.x + box.width / 2, box.y + box.height / 2];
"""

pytestmark = [pytest.mark.browser, needs_chromium]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def page(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(read_groups([studies / name for name in ("baseline", "solo", "dose")]), path)
    return path


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, page: Path) -> Open:
    """Opens the page in a window of some size, light or dark, and waits until every chart is drawn."""

    def open_page(size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Any:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        emulate(browser, scheme)
        browser.get(page.as_uri())
        wait_until_drawn(browser, scheme)
        return browser

    return open_page


def emulate(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait_until_drawn(browser: Any, scheme: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 120).until(
        lambda b: b.execute_script("return document.documentElement.dataset.drawn") == scheme
    )


def point_at(browser: Any, figure: str, number: int, *, click: bool = False) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    x, y = browser.execute_script(MIDDLE_OF_A_POINT, figure, number)
    actions = ActionBuilder(browser)
    mouse: Any = actions.pointer_action
    mouse.move_to_location(round(x) - 1, round(y))
    mouse.move_to_location(round(x), round(y))
    if click:
        mouse.click()
    actions.perform()
    ActionChains(browser).pause(0.3).perform()


def test_every_chart_is_drawn_without_a_word_on_the_console(opened: Open) -> None:
    browser = opened()
    assert browser.get_log("browser") == []
    charts, drawn, empty = browser.execute_script("""
        const charts = [...document.querySelectorAll('.chart')];
        const marks = (chart) => chart.querySelectorAll('g.mark-symbol path, g.mark-rect path, g.mark-line path, ' +
            'g.mark-rule line').length + chart.querySelectorAll('canvas').length;
        return [charts.length, charts.filter((c) => c.dataset.drawn).length,
                charts.filter((c) => marks(c) < 1).map((c) => c.dataset.spec)];""")
    assert charts > 20
    assert (drawn, empty) == (charts, [])
    resources = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert resources == [], "nothing is fetched"


def test_pointing_at_a_subnet_shows_its_architecture(opened: Open, studies: Path) -> None:
    browser = opened()
    point_at(browser, "g0-population-boxes0", 40)
    text = browser.execute_script("return document.getElementById('vg-tooltip-element').innerText")
    assert "top-1" in text
    assert "stage 5" in text
    assert " · k" in text, "stages read block by block"


def test_a_click_shows_the_command_that_takes_the_subnet_out(opened: Open, studies: Path) -> None:
    browser = opened()
    figure = browser.find_element("id", "g0-population-boxes0")
    picked = figure.find_element("css selector", ".picked")
    assert not picked.is_displayed()
    point_at(browser, "g0-population-boxes0", 40, click=True)
    assert picked.is_displayed()
    command = picked.find_element("css selector", "code").text
    listed = browser.execute_script(
        "return [...document.querySelectorAll('#g0-population-boxes0 td code')].map((code) => code.textContent)"
    )
    assert command.startswith(f"trainonce extract {studies}/baseline/runs/")
    assert command in listed, "the table has the same command, for those who use no mouse"
    button = picked.find_element("css selector", "button")
    button.click()
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 5).until(lambda _b: button.text == "copied")


def test_the_page_fits_a_phone(opened: Open) -> None:
    browser = opened(PHONE)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    width, page_width, wide = browser.execute_script("""
        const inside = (el) => el.closest('.scroll') !== null && !el.classList.contains('scroll');
        const wide = [...document.body.querySelectorAll('*')].filter((el) => !inside(el) && !el.closest('svg') &&
            el.getBoundingClientRect().right > window.innerWidth + 1).map((el) => el.outerHTML.slice(0, 80));
        return [window.innerWidth, document.documentElement.scrollWidth, wide];""")
    assert width == PHONE[0]
    assert (page_width, wide) == (width, [])


COLOURS = """
const text = document.querySelector('#g0-population-boxes0 g.role-axis-label text');
return [getComputedStyle(document.body).backgroundColor, text.getAttribute('fill')];
"""


def test_the_dark_reaches_page_and_charts_and_goes_again(opened: Open) -> None:
    browser = opened()
    light = browser.execute_script(COLOURS)
    emulate(browser, "dark")
    wait_until_drawn(browser, "dark")
    dark = browser.execute_script(COLOURS)
    assert brightness(dark[0]) < 60 < 200 < brightness(light[0])
    assert dark[1] != light[1]
    emulate(browser, "light")
    wait_until_drawn(browser, "light")
    assert browser.execute_script(COLOURS) == light
    assert browser.get_log("browser") == []


def brightness(colour: str) -> float:
    """The mean of red, green and blue in `rgb(r, g, b)`."""
    parts = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(parts) / 3
