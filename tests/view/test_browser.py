"""Both pages in headless Chromium: light and dark, phone width, keyboard, hostile text, news. Pictures of them go to artefacts/."""

import shutil
from pathlib import Path

import pytest
from browser import CHROMIUM, DESK, DRIVER, PHONE, browser, look, shot
from filled import HOSTILE, Filled, many, sample, step
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from serving import passes, running, viewing
from worker import Worker

from keystep.errors import Stopped
from keystep.plan import Plan, Step
from keystep.run import AheadBy, Journal, Many, Run
from keystep.run.builtin import builtin
from keystep.run.skills import PromptSkill
from keystep.run.tables import runs
from keystep.skill import SkillLibrary
from keystep.view import report

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here")
ARTEFACTS = Path(__file__).parents[2] / "artefacts"
WAIT = 60


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with browser(profile) as driver:
        yield driver
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports by name, as addresses: of a long procedure, of many inputs, of a plan, of hostile texts."""
    folder = tmp_path_factory.mktemp("pages")
    journal = Journal(folder / "a.db")

    def kept(name, journal, id):
        (folder / f"{name}.html").write_text(report(journal, id), "utf-8")
        return (folder / f"{name}.html").as_uri()

    run = Run(Worker([0.85, 0.1]), vote=AheadBy(3), journal=journal, id="tower", seed=1, spec={"procedure": "hanoi"})
    run.execute_sync(builtin("hanoi", {"disks": 9}))
    found = {"tower": kept("tower", journal, "tower")}
    run = Run(Worker([0.8], wrong_at=["row3/4"]), vote=AheadBy(2, cap=12), journal=journal, id="rows", seed=2)
    Many(lambda row: builtin("hanoi", row), [{"disks": 3 + number % 3} for number in range(40)]).execute_sync(run)
    found["rows"] = kept("rows", journal, "rows")
    plan = Plan(steps=tuple(Step(id=f"{'long-' * 12}{number}", skill="say", needs=(), pre=None) for number in range(3)))
    run = Run(Worker([1.0]), vote=AheadBy(2), journal=journal, id="plan")
    with pytest.raises(Stopped):
        run.execute_sync(plan, SkillLibrary([PromptSkill("say", "Tower of nothing")]))
    found["plan"] = kept("plan", journal, "plan")
    journal.close()
    made = Filled(folder / "b.db", HOSTILE[0])
    scope = made.place("\"'><img src=x onerror=window.hacked=1>", HOSTILE[0])
    made.put("steps", (step(scope, seq, 4, 1, candidates='{"<img src=x onerror=window.hacked=1>":2,"b":1}') for seq in range(8)))
    made.put("samples", (sample(scope, seq, 0, text * 9, None, text.replace(":", "")) for seq, text in enumerate(HOSTILE)))
    made.change(runs.update().values(why=HOSTILE[1], name=HOSTILE[4], status="stopped"))
    found["hostile"] = kept("hostile", made.journal, HOSTILE[0])
    made.close()
    return found


def quiet(driver):
    """Whether the console has nothing to say: no error, and nothing that the page's policy had to stop."""
    return [entry["message"] for entry in driver.get_log("browser")] == []


def overflow(driver):
    """Elements that stick out of the screen sideways."""
    return driver.execute_script("""
        const wide = document.documentElement.scrollWidth - innerWidth;
        const out = [...document.querySelectorAll("main *")].filter((each) => each.getBoundingClientRect().right > innerWidth + 1);
        return wide > 0 ? [wide, ...out.map((each) => each.outerHTML.slice(0, 120))] : [];
    """)


@pytest.mark.parametrize("name", ["tower", "rows", "plan", "hostile"])
@pytest.mark.parametrize(("size", "dark"), [(DESK, False), (DESK, True), (PHONE, False), (PHONE, True)])
def test_every_page_fits_in_light_and_dark(driver, pages, name, size, dark):
    look(driver, size, dark=dark)
    driver.get(pages[name])
    driver.execute_script("localStorage.clear()")
    driver.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    if driver.find_elements(By.ID, "slider"):
        driver.find_element(By.ID, "slider").send_keys(Keys.END)
    assert overflow(driver) == []
    assert worst_contrast(driver) >= 4.5
    assert driver.execute_script("return window.hacked") is None
    assert quiet(driver)
    driver.execute_script("for (const each of document.querySelectorAll('main details')) each.open = false; scrollTo(0, 0)")
    shot(driver, ARTEFACTS / f"report-{name}-{'phone' if size == PHONE else 'desk'}-{'dark' if dark else 'light'}.png")


def worst_contrast(driver):
    """The least contrast of any text with what is behind it (WCAG asks for 4.5)."""
    return driver.execute_script("""
        const light = (colour) => {
            const part = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
            const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => part(v / 255));
            return .2126 * r + .7152 * g + .0722 * b;
        };
        const behind = (each) => {
            for (; each; each = each.parentElement) {
                const colour = getComputedStyle(each).backgroundColor;
                if (!/, 0\\)$|transparent/.test(colour)) return colour;
            }
            return "rgb(255, 255, 255)";
        };
        let worst = 99;
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            const each = walker.currentNode.parentElement;
            const style = getComputedStyle(each);
            if (!walker.currentNode.data.trim() || each.closest("script, style, template, [hidden], :disabled, svg")) continue;
            const pair = [light(style.color), light(behind(each))].sort((a, b) => b - a);
            worst = Math.min(worst, (pair[0] + .05) / (pair[1] + .05));
        }
        return worst;
    """)


def active(driver, what):
    return driver.execute_script(f"return document.activeElement.{what}")


def test_by_keyboard_alone(driver, pages):
    look(driver, DESK)
    driver.get(pages["tower"])
    keys = lambda *some: driver.switch_to.active_element.send_keys(*some)  # noqa: E731
    keys(Keys.TAB)
    assert active(driver, "className") == "skip" and driver.switch_to.active_element.rect["y"] >= 0
    keys(Keys.ENTER)
    assert active(driver, "id") == "content"
    keys(Keys.TAB)
    assert active(driver, "id") == "slider"
    outline = "return getComputedStyle(document.querySelector('.chart')).outlineStyle"
    assert driver.execute_script(outline) == "solid"  # the focus is seen
    panel = driver.find_element(By.ID, "bin")
    assert panel.is_displayed() and panel.find_element(By.TAG_NAME, "h3").text == "Steps 0 to 3"
    keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert panel.find_element(By.TAG_NAME, "h3").text == "Steps 8 to 11"
    assert driver.find_element(By.ID, "slider").get_attribute("aria-valuetext").startswith("Steps 8 to 11: ")
    keys(Keys.END)
    assert panel.find_element(By.TAG_NAME, "h3").text == "Steps 508 to 510"
    keys(Keys.HOME, Keys.TAB)
    assert active(driver, "id") == "turn-on"  # there is nothing before the first
    keys(Keys.ENTER)
    assert panel.find_element(By.TAG_NAME, "h3").text == "Steps 4 to 7"
    assert active(driver, "id") == "turn-on"
    theme = driver.find_element(By.ID, "theme")
    before = driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    theme.send_keys(Keys.ENTER)
    assert driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color") != before
    driver.refresh()
    assert driver.find_element(By.ID, "theme").text == "Light"  # it is remembered
    driver.execute_script("localStorage.clear()")
    assert quiet(driver)


def test_a_pointer_chooses_and_lists_turn_their_pages(driver, pages):
    look(driver, DESK)
    driver.get(pages["tower"])
    plot = driver.find_element(By.CSS_SELECTOR, ".plot")
    ActionChains(driver).move_to_element_with_offset(plot, plot.size["width"] // 4 + 3, 0).click().perform()
    assert driver.find_element(By.CSS_SELECTOR, "#bin h3").text == "Steps 384 to 387"
    shown = lambda: [each.text for each in driver.find_elements(By.CSS_SELECTOR, "#hard-steps b") if each.is_displayed()]  # noqa: E731
    first = shown()
    assert len(first) == 8
    driver.find_element(By.ID, "hard-steps1").click()
    assert len(shown()) == 8 and not set(shown()) & set(first)
    summary = driver.find_elements(By.CSS_SELECTOR, "#hard-steps summary")[8]
    summary.send_keys(Keys.ENTER)
    assert driver.find_elements(By.CSS_SELECTOR, "#hard-steps .samples")[8].is_displayed()
    assert quiet(driver)


def test_without_scripts_the_page_is_all_there(driver, pages):
    look(driver, DESK)
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(pages["tower"])
        text = driver.find_element(By.TAG_NAME, "body").text
        assert "511 steps, every one right" in text and "Hard steps" in text
        assert not driver.find_element(By.ID, "theme").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_live_page_moves(driver, tmp_path):
    """A run seen from its beginning to its end, without a new load; what is open and chosen stays so."""
    look(driver, DESK)
    file = tmp_path / "a.db"
    Journal(file).close()

    def until(words):
        WebDriverWait(driver, WAIT).until(lambda _: words in driver.find_element(By.TAG_NAME, "main").text)

    with viewing(file) as server, running(file) as run:
        driver.get(server.where)
        until("1 run under way")
        shot(driver, ARTEFACTS / "view-runs.png")
        driver.find_element(By.LINK_TEXT, "hanoi").click()
        until("20 of 63 steps so far")
        driver.execute_script("window.loaded = 'once'")
        slider = driver.find_element(By.ID, "slider")
        slider.send_keys(Keys.ARROW_RIGHT)
        WebDriverWait(driver, WAIT).until(lambda _: "Step 1" in driver.find_element(By.ID, "bin").text)
        shot(driver, ARTEFACTS / "view-run.png")
        passes(run)
        until("40 of 63 steps so far")
        assert active(driver, "id") == "slider"
        WebDriverWait(driver, WAIT).until(lambda _: "Step 1" in driver.find_element(By.ID, "bin").text)
        [first, *_] = driver.find_elements(By.CSS_SELECTOR, "#hard-steps details")
        opened = first.get_attribute("id")
        first.find_element(By.TAG_NAME, "summary").click()
        look(driver, PHONE, dark=True)
        assert overflow(driver) == []
        shot(driver, ARTEFACTS / "view-run-phone-dark.png")
        passes(run)
        until("63 steps, every one right")
        stays = driver.find_elements(By.ID, opened)
        assert not stays or stays[0].get_attribute("open")
        assert driver.execute_script("return window.loaded") == "once"
        assert driver.find_element(By.ID, "live").text == "live"
        assert quiet(driver)
        driver.get("about:blank")


def test_a_live_page_of_hostile_texts(driver, tmp_path):
    look(driver, DESK)
    made = Filled(tmp_path / "a.db")
    many(made, 400)
    made.change(runs.update().values(name=HOSTILE[0], why=HOSTILE[1], status="stopped"))
    with viewing(tmp_path / "a.db") as server:
        driver.get(f"{server.where}/runs/r")
        driver.find_element(By.ID, "slider").send_keys(Keys.END)
        WebDriverWait(driver, WAIT).until(lambda _: "Steps 398 to 399" in driver.find_element(By.ID, "bin").text)
        made.change(runs.update().values(why=HOSTILE[4]))
        WebDriverWait(driver, WAIT).until(lambda _: HOSTILE[4] in driver.find_element(By.ID, "head").text)
        assert driver.execute_script("return window.hacked") is None and quiet(driver)
        driver.get("about:blank")
    made.close()
