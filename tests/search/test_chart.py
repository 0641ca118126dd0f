"""The page in a real browser, framed as MLflow frames it; the PNG by its pixels."""

import json
import math
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from search.fronts.front import Entry, Front
from search.fronts.page import front_html
from search.fronts.pareto import Axis
from search.fronts.png import front_figure, front_png
from trainers.metrics import Direction

ACCURACY = Axis("accuracy", "max", "linear", worst=0.0, best=1.0)
PARAMETERS = Axis("parameters", "min", "log", worst=100_000.0, best=1.0)
SIZE = Axis("size_bytes", "min", "linear", worst=400_000.0, best=0.0)
TEACHER = {"accuracy": 0.99, "parameters": 100_000.0, "size_bytes": 400_000.0}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)><b>x</b>"


def entry(trial: int, accuracy: float, parameters: float, **recipe: object) -> Entry:
    measured = {"accuracy": accuracy, "parameters": parameters, "size_bytes": 4 * parameters}
    return Entry(trial, {"transfer": "kd", "student.width": trial / 8, **recipe}, measured, run_id=f"run-{trial}")


STUDENTS = [
    entry(0, 0.85, 20_000),
    entry(1, 0.90, 10_000, transfer="none"),
    entry(2, 0.95, 50_000),
    entry(3, 0.80, 1000, note=EVIL, **{EVIL: 1}),
    entry(4, 0.94, 60_000, transfer=EVIL),
    entry(5, math.nan, 5000),
]


def front(*names: str, students: list[Entry] = STUDENTS) -> Front:
    axes = [axis for name in names for axis in (ACCURACY, PARAMETERS, SIZE) if axis.name == name]
    directions: dict[str, Direction] = {axis.name: axis.direction for axis in axes}
    return Front.of(students, directions, axes)


TWO = front("accuracy", "parameters")


def own_part(page: str) -> str:
    """The page without plotly.js, which holds addresses and tags in strings."""
    bundle = max(re.findall(r"<script[^>]*>.*?</script>", page, flags=re.DOTALL), key=len)
    assert "plotly.js" in bundle[:200]
    return page.replace(bundle, "")


def test_the_page_is_the_same_each_time_and_loads_nothing() -> None:
    page = front_html(TWO, "digits", None, TEACHER)
    assert page == front_html(TWO, "digits", None, TEACHER)
    assert not re.search(r"<script[^>]+src|<link|@import|<img|<iframe|<object|\burl\(", own_part(page), re.IGNORECASE)
    assert not re.search(r"<script[^>]+src|<link\b|@import", page, re.IGNORECASE)
    assert "http" not in own_part(page)


def test_values_in_the_page_are_escaped() -> None:
    page = own_part(front_html(TWO, f"digits{EVIL}", f'http://host/?a=1&b="{EVIL}', TEACHER | {EVIL: 1.0}))
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "note=&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<title>digits&lt;script&gt;" in page
    assert 'href="http://host/?a=1&amp;b=&quot;&lt;script&gt;' in page


def test_the_table_of_the_page_has_the_members_by_size() -> None:
    page = own_part(front_html(TWO, "digits", None))
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert [row[:3] for row in rows] == [
        ["student", "accuracy", "parameters"],
        ["3", "0.8000", "1,000"],
        ["1", "0.9000", "10,000"],
        ["2", "0.9500", "50,000"],
    ]
    assert [row[-1] for row in rows[1:]] == ["run-3", "run-1", "run-2"]


def traces(page: str) -> dict[str, dict[str, Any]]:
    """What plotly draws, by name."""
    drawn = own_part(page).partition("Plotly.newPlot(")[2].partition("[")[1:]
    found: list[dict[str, Any]] = json.JSONDecoder().raw_decode("".join(drawn))[0]
    return {trace["name"]: trace for trace in found if trace.get("showlegend", True)}


@pytest.mark.parametrize("names", [("accuracy", "parameters"), ("parameters", "accuracy")])
def test_accuracies_on_a_known_number_of_images_have_bars(names: tuple[str, str]) -> None:
    some = replace(front(*names), validation_images=100)
    page = front_html(some, "digits", None)
    assert "<br>chosen from 6 students on 100 validation images, which flatters the best; 95 % int" in own_part(page)
    assert '<th class="number">accuracy</th><th class="number">95 % interval</th>' in page
    assert '<td class="number">0.8000</td><td class="number">0.711–0.867</td>' in page
    ends = [some.interval(student) for student in some.non_dominated]
    bars, axis = traces(page)["95 % interval"], "y" if names[0] == "accuracy" else "x"
    error = bars[f"error_{axis}"]
    for value, below, above, end in zip(bars[axis], error["arrayminus"], error["array"], ends, strict=True):
        assert (value - below, value + above) == pytest.approx(end)
    assert "accuracy 0.9500 (95 % interval 0.888–0.978)<br>" in traces(page)["kd"]["hovertext"][0]
    figure = front_figure(some, "digits")
    assert figure.get_supxlabel() == some.chosen_from()
    (_, _, (drawn,)) = figure.axes[0].containers[0].lines
    for segment, end in zip(drawn.get_segments(), ends, strict=True):
        assert segment[:, "xy".index(axis)].tolist() == pytest.approx(end)


def test_without_a_number_of_images_or_an_accuracy_there_are_no_bars() -> None:
    sizes = replace(front("parameters", "size_bytes"), validation_images=100)
    for some in (TWO, sizes):
        assert "95 % interval" not in traces(front_html(some, "digits", None))
        assert front_figure(some, "digits").axes[0].containers == []


CASES = [
    front("accuracy"),
    front("parameters"),
    TWO,
    front("parameters", "accuracy"),
    front("accuracy", "parameters", "size_bytes"),
    front("accuracy", "size_bytes", students=[]),
    front("accuracy", "parameters", students=[STUDENTS[0]]),
    front("accuracy", "parameters", students=[STUDENTS[5]]),
    front("accuracy", students=[Entry(0, {}, {"accuracy": 0.5})]),
    front(
        "accuracy",
        "parameters",
        students=[*(entry(t, 0.9 + t / 1000, 10**4 + t) for t in range(20)), entry(20, 0.1, 2e4)],
    ),
]


@pytest.mark.parametrize("some", CASES, ids=lambda some: f"{'-'.join(some.objectives)}-{len(some.entries)}")
@pytest.mark.parametrize("teacher", [None, TEACHER])
def test_any_front_can_be_drawn(some: Front, teacher: dict[str, float] | None, tmp_path: Path) -> None:
    assert front_html(some, "digits", None, teacher).endswith("</html>\n")
    front_png(some, "digits $x_", tmp_path / "front.png", teacher)
    header = (tmp_path / "front.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:]) == (1600, 900)


def test_a_teacher_that_was_not_measured_on_both_axes_has_no_mark() -> None:
    assert '"name":"teacher"' in own_part(front_html(TWO, "digits", None, TEACHER))
    assert '"name":"teacher"' not in own_part(front_html(TWO, "digits", None, {"accuracy": 0.9}))


def test_the_png_shows_every_transfer_method_in_its_own_colour(tmp_path: Path) -> None:
    front_png(TWO, "digits", tmp_path / "front.png", TEACHER)
    pixels = (matplotlib.image.imread(tmp_path / "front.png")[..., :3] * 255).round().astype(int)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):  # three methods: two named, one evil
        assert (pixels == colour).all(axis=2).sum() > 50


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "these tests want Debian's package chromium"
    assert driver, "these tests want Debian's package chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1280,1000"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def hover(browser: webdriver.Chrome, point: WebElement, awaited: str) -> set[str]:
    """The lines that come up when the mouse is on the point; `awaited` is one of them."""
    ActionChains(browser).move_to_element(point).perform()
    script = "return [...document.querySelectorAll('.hoverlayer tspan.line')].map(line => line.textContent)"
    WebDriverWait(browser, 20).until(lambda b: awaited in b.execute_script(script))
    return set(browser.execute_script(script))


def test_the_page_draws_its_points_in_a_sandboxed_frame_offline(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = front_html(TWO, f"digits{EVIL}", "http://127.0.0.1:9/", TEACHER | {EVIL: 7.0})
    # As MLflow's artifact view: a frame of a blob that may run scripts and do nothing else.
    blob = json.dumps(page).replace("<", r"\u003c")
    (tmp_path / "mlflow.html").write_text(
        '<iframe sandbox="allow-scripts" style="width: 1200px; height: 900px"></iframe><script>'
        f"const blob = new Blob([{blob}], {{type: 'text/html'}});"
        "document.querySelector('iframe').src = URL.createObjectURL(blob);</script>",
        encoding="utf-8",
    )
    browser.set_network_conditions(offline=True, latency=0, throughput=0)
    browser.get((tmp_path / "mlflow.html").as_uri())
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    WebDriverWait(browser, 30).until(lambda b: b.find_elements(By.CSS_SELECTOR, ".scatterlayer .point"))
    points = browser.find_elements(By.CSS_SELECTOR, ".scatterlayer .point")
    assert len(points) == 5 + 1  # the students that have a place, and the teacher
    assert all(point.is_displayed() and point.size["width"] > 5 for point in points)
    assert len({(p.location["x"], p.location["y"]) for p in points}) == 6
    line = browser.find_element(By.CSS_SELECTOR, ".scatterlayer .js-line").get_attribute("d")
    assert line
    assert re.fullmatch(r"M[^HVL]+H[^V]+V[^H]+H[^V]+V.+", line)  # right, up, right, up
    words = browser.find_element(By.TAG_NAME, "main").text
    assert "accuracy on validation data (fraction correct)" in words
    assert "parameters (count), log scale" in words
    assert f"digits{EVIL}: the front" in words
    legend = [text.text for text in browser.find_elements(By.CSS_SELECTOR, ".legendtext")]
    assert legend == ["front", EVIL, "kd", "none", "teacher"]
    titles = [b.get_attribute("data-title") for b in browser.find_elements(By.CSS_SELECTOR, ".modebar-btn")]
    assert titles
    assert not [title for title in titles if re.search("share|cloud|edit", title or "", re.IGNORECASE)]
    by_x = sorted(points, key=lambda point: point.location["x"])
    assert {"accuracy 0.8000", f"note = {EVIL}"} <= hover(browser, by_x[0], "trial 3, on the front")
    assert {"accuracy 0.9900", f"{EVIL} 7"} <= hover(browser, by_x[-1], "teacher")
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    browser.switch_to.default_content()
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
