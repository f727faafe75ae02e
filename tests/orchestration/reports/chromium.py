"""A headless Chromium for the tests that open pages in a browser.

python -m tests.orchestration.reports.chromium RUN docs/images    # takes the README's screenshots again
"""

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium import webdriver

ADVICE = "not found: install it (Debian: apt-get install chromium chromium-driver) or leave out `-m slow`"


@contextmanager
def browser(width: int = 1200, height: int = 900) -> Iterator[webdriver.Chrome]:
    """A headless Chromium. Without one, the assertion gives the command to install it."""
    program = shutil.which("chromium")
    driver_program = shutil.which("chromedriver")
    assert program, f"chromium {ADVICE}"
    assert driver_program, f"chromedriver {ADVICE}"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--autoplay-policy=no-user-gesture-required", f"--window-size={width},{height}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
    try:
        driver.set_page_load_timeout(60)
        yield driver
    finally:
        driver.quit()


def show(driver: webdriver.Chrome, page: Path, width: int = 1200, dark: bool = False, printed: bool = False) -> None:
    """Open a page from disk at a width, on a light or dark screen, or as it would be printed."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"media": "print" if printed else "screen", "features": scheme}
    )
    driver.get(page.resolve().as_uri())


def console_errors(driver: webdriver.Chrome) -> list[str]:
    """The page's warnings and errors on the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


def screenshot(driver: webdriver.Chrome, path: Path) -> None:
    """Save a screenshot of the visible part of the page, with few colours to keep the file small."""
    Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB").quantize(64).save(path, optimize=True)


def main(run_dir: Path, images: Path) -> None:
    """Take the README's screenshots of a run: the report, the listening page, the report on a dark phone screen."""
    with browser() as driver:
        show(driver, run_dir / "report.html", width=1000)
        screenshot(driver, images / "report.png")
        show(driver, run_dir / "listen.html", width=1000)
        driver.execute_script("document.querySelector('article').scrollIntoView({behavior: 'instant'})")
        screenshot(driver, images / "listen.png")
        show(driver, run_dir / "report.html", width=390, dark=True)
        screenshot(driver, images / "phone.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
