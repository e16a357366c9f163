"""Headless Chromium, as far as the tests and the picture of the docs need it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip
DESK, PHONE = (1200, 900), (380, 780)


@contextmanager
def browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser with a fresh profile that keeps what its console says."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))  # a named driver: selenium looks for none
    driver.set_script_timeout(30)
    try:
        yield driver
    finally:
        driver.quit()


def look(driver: webdriver.Chrome, size: tuple[int, int], *, dark: bool = False) -> None:
    """Take a screen of this size, and a system in light or dark."""
    width, height = size
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def shot(driver: webdriver.Chrome, file: Path, *, whole: bool = True) -> None:
    """A picture of the page, or of what is on the screen."""
    import base64

    file.parent.mkdir(parents=True, exist_ok=True)
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": whole, **(_clip(driver) if whole else {})})
    file.write_bytes(base64.b64decode(taken["data"]))


def _clip(driver: webdriver.Chrome) -> dict[str, Any]:
    size = driver.execute_script("const e = document.documentElement; return [e.clientWidth, e.scrollHeight]")
    return {"clip": {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}}
