"""Takes a screenshot of a page of the MLflow UI with Chromium, once its charts are drawn.

Usage: python docs/screenshot.py URL FILE.png
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import presence_of_element_located
from selenium.webdriver.support.wait import WebDriverWait

SCATTER_POINTS = ".js-plotly-plot .scatterlayer .point"
PARALLEL_AXES = ".parcoords .dimension"

# What a user clicks once: hide the assistant that covers a quarter of the window, and show the menus for training
_CLICKED = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
"""


@contextmanager
def browser(width: int = 1600, height: int = 1000) -> Iterator[webdriver.Chrome]:
    """A headless Chromium whose pages are `width` x `height` pixels, closed on leaving."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _CLICKED})
        yield driver
    finally:
        driver.quit()


def wait_for(driver: webdriver.Chrome, selector: str, timeout_s: float = 60.0) -> None:
    """Returns once the page has an element of this CSS selector; raises selenium's TimeoutException otherwise."""
    WebDriverWait(driver, timeout_s).until(presence_of_element_located((By.CSS_SELECTOR, selector)))


def wait_for_charts(driver: webdriver.Chrome) -> None:
    """Returns once a scatter and parallel coordinates are drawn; raises selenium's TimeoutException otherwise."""
    wait_for(driver, SCATTER_POINTS)
    wait_for(driver, PARALLEL_AXES)
    time.sleep(2.0)  # plotly and the canvas under the axes have no event for "done"


def main(url: str, file: str) -> None:
    """Save a screenshot of the page at `url` to `file`."""
    with browser() as driver:
        driver.get(url)
        wait_for_charts(driver)
        Path(file).write_bytes(driver.get_screenshot_as_png())


if __name__ == "__main__":
    main(*sys.argv[1:])
