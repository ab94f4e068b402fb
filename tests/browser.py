"""A real browser without a screen, for what a page does in one."""

import json
import shutil
import time
from contextlib import contextmanager

import pytest

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs chromium and chromedriver on PATH"
)


@contextmanager
def browser():
    """Chromium, driven by selenium, which keeps its console and its requests."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver, path, width=1400):
    """Open a page of a file in a window of so many pixels, and wait until its script is through."""
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get_log("performance")  # of the page before
    driver.get_log("browser")
    driver.get(path.as_uri())
    give_up = time.monotonic() + 120
    while not driver.execute_script("return document.documentElement.dataset.ready"):
        assert time.monotonic() < give_up, driver.get_log("browser")
        time.sleep(0.05)


def requests_of(driver) -> set[str]:
    """Addresses that the page asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
