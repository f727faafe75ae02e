"""The pages in a browser: opened from disk in headless Chromium, with a wide, a narrow and a dark screen.

These tests need Chromium: without it they fail, and the message gives the command to install it.
"""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from selenium import webdriver

from sepscene.orchestration.reports.listening_page import Neighbour, PageScene, Query, write_listening_page
from sepscene.orchestration.reports.reproduction_report import write_reproduction_report
from sepscene.orchestration.reports.run_report import write_report
from sepscene.orchestration.reports.sweep_report import write_sweep_report
from tests.orchestration.reports.chromium import browser, console_errors, show
from tests.orchestration.samples import sample_results, write_sample_reproduction, write_sample_run, write_sample_sweep

pytestmark = pytest.mark.slow

PAGES = ("run/report.html", "run/listen.html", "sweep/report.html", "reproduction/report.html")
RATE = 16_000


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One page of each kind, with links between them."""
    folder = tmp_path_factory.mktemp("site")
    write_sample_run(folder / "run")
    waves = np.random.default_rng(0).normal(0, 0.1, (2, 2 * RATE)).astype(np.float32)
    tone = (0.3 * np.sin(np.arange(2 * RATE) * 0.2)).astype(np.float32)
    ladder = sample_results().ladder
    separated = {processor.name: waves for processor in ladder}
    scenes = [PageScene("scene-0", waves.sum(0), separated, ("rain",), waves, ("rain", "wind"))]
    queries = [Query("clip-0", tone, ("rain",), (Neighbour("clip-1", tone, ("rain",), 0.02, True),), "rain")]
    write_listening_page(folder / "run", scenes, ladder, RATE, queries, has_report=True)
    write_report(folder / "run")
    sweep = write_sample_sweep(folder / "sweep")
    write_sample_run(folder / "sweep" / sweep.trials[0].run_dir)
    write_report(folder / "sweep" / sweep.trials[0].run_dir)
    write_sweep_report(folder / "sweep")
    write_sample_reproduction(folder / "reproduction")
    write_reproduction_report(folder / "reproduction")
    return folder


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_page_opens_without_console_errors_and_fits_its_width(
    driver: webdriver.Chrome, site: Path, page: str, width: int, dark: bool
) -> None:
    console_errors(driver)
    show(driver, site / page, width, dark)
    assert console_errors(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script(_WIDER_THAN_THE_PAGE) == []


def test_a_page_with_a_network_request_would_be_detected(driver: webdriver.Chrome, site: Path, tmp_path: Path) -> None:
    page = tmp_path / "request.html"
    whole = (site / "run/report.html").read_text()
    page.write_text(whole.replace("<h1>", '<h1><img alt="" src="https://example.org/picture.png">', 1))
    console_errors(driver)
    show(driver, page)
    assert any("Content Security Policy" in message for message in console_errors(driver))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_contrast_of_at_least_4_5(driver: webdriver.Chrome, site: Path, page: str, dark: bool) -> None:
    show(driver, site / page, dark=dark)
    seen = driver.execute_script(_CONTRASTS)
    assert len(seen) >= 3, "hardly any text was found"
    assert [found for found in seen if found[0] < 4.5] == []
    luminance = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance == "rgb(22, 24, 27)") == dark


@pytest.mark.parametrize("page", PAGES)
def test_lines_and_points_of_pictures_have_contrast(driver: webdriver.Chrome, site: Path, page: str) -> None:
    for dark in (False, True):
        show(driver, site / page, dark=dark)
        weak = [found for found in driver.execute_script(_SERIES_CONTRASTS) if found[0] < 3]
        assert weak == []


@pytest.mark.parametrize("page", PAGES)
def test_all_links_are_valid(driver: webdriver.Chrome, site: Path, page: str) -> None:
    show(driver, site / page)
    links = driver.execute_script("return [...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))")
    assert links, "there is nothing to follow"
    for link in links:
        if link.startswith("#"):
            assert driver.execute_script("return document.querySelector(arguments[0]) !== null", link), link
        else:
            assert (site / page).parent.joinpath(unquote(link)).is_file(), link


def test_tables_show_the_metrics(driver: webdriver.Chrome, site: Path) -> None:
    show(driver, site / "run/report.html")
    text = driver.execute_script("return document.querySelector('#encoders table').innerText")
    assert "mix-chan\t0.412 [0.394, 0.430]\t0.392 [0.374, 0.410]" in text
    assert "0.412" in driver.execute_script("return document.querySelector('.card').innerText")
    paper = driver.execute_script("return document.querySelector('tr.ours').innerText")
    assert paper == "S2∨N, SimCLR & CP\t0.306\t0.412 [0.394, 0.430]"
    show(driver, site / "sweep/report.html")
    assert driver.execute_script("return document.querySelectorAll('#trials tbody tr').length") == 18
    show(driver, site / "reproduction/report.html")
    assert driver.execute_script("return document.querySelectorAll('#claims .verdict').length") == 6


def test_sounds_are_loaded_when_they_are_played_and_can_be_compared(driver: webdriver.Chrome, site: Path) -> None:
    show(driver, site / "run/listen.html")
    assert driver.execute_script(
        "return [...document.querySelectorAll('audio')].every((audio) => audio.preload === 'none' && !audio.controls)"
    )
    durations = driver.execute_async_script(_DURATIONS)
    assert len(durations) == 11  # mixture, 2 sources, 3 processors of 2 channels, query, neighbour
    assert durations == pytest.approx([2.0] * 11, abs=0.01)
    played = driver.execute_async_script(_COMPARE)
    assert played["error"] is None
    assert (played["first"], played["second"]) == ("paused", "playing")
    assert played["seconds"] >= played["before"] > 0.2, "the second sound must continue at the position of the first"
    assert played["volumes"][0] < played["volumes"][1] == 1, "the louder sound must be turned down"
    assert played["loop"] is True
    assert driver.execute_script("return [...document.images].every((i) => i.complete && i.naturalWidth > 0)")


def test_click_on_a_picture_jumps_to_that_position(driver: webdriver.Chrome, site: Path) -> None:
    show(driver, site / "run/listen.html")
    driver.execute_async_script(_DURATIONS)
    at = driver.execute_async_script("""
        const done = arguments[0], mel = document.querySelector('.mel'), box = mel.getBoundingClientRect();
        const audio = mel.parentElement.querySelector('audio');
        audio.addEventListener('seeked', () => { audio.pause(); done(audio.currentTime); }, {once: true});
        mel.dispatchEvent(new MouseEvent('click', {clientX: box.left + 0.75 * box.width, clientY: box.top + 5}));
    """)
    assert at == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("page", PAGES)
def test_print_hides_interactive_parts_and_uses_no_colour(driver: webdriver.Chrome, site: Path, page: str) -> None:
    show(driver, site / page, width=794, printed=True)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 794
    assert driver.execute_script(
        "return [...document.querySelectorAll('nav, audio')].every((e) => getComputedStyle(e).display === 'none')"
    )
    colours = driver.execute_script(
        "const style = getComputedStyle(document.documentElement);"
        "return ['--ink','--soft','--s1','--s2','--s3','--s10'].map((name) => style.getPropertyValue(name).trim())"
    )
    for colour in colours:
        digits = colour.lstrip("#")
        parts = {digits[i : i + len(digits) // 3] for i in range(0, len(digits), len(digits) // 3)}
        assert len(parts) == 1, f"{colour} is not a grey"


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_accessible_to_screen_readers(driver: webdriver.Chrome, site: Path, page: str) -> None:
    show(driver, site / page)
    missing = driver.execute_script("""
        const bad = [];
        for (const svg of document.querySelectorAll('svg')) if (!svg.getAttribute('aria-label')) bad.push('svg');
        for (const img of document.images) if (!img.alt) bad.push('img');
        for (const audio of document.querySelectorAll('audio')) if (!audio.ariaLabel) bad.push('audio');
        for (const th of document.querySelectorAll('th')) if (!th.scope) bad.push('th ' + th.innerText);
        for (const id of ['header', 'main', 'footer']) if (document.querySelectorAll(id).length !== 1) bad.push(id);
        if (document.documentElement.lang !== 'en') bad.push('lang');
        if (document.querySelectorAll('h1').length !== 1) bad.push('h1');
        let level = 1;
        for (const h of document.querySelectorAll('h1, h2, h3, h4')) {
          if (+h.tagName[1] > level + 1) bad.push('heading level jumps at ' + h.innerText);
          level = +h.tagName[1];
        }
        return bad;
    """)
    assert missing == []


_WIDER_THAN_THE_PAGE = """
return [...document.querySelectorAll('body *')].filter((e) => {
  if (e.closest('.scroll, pre, figure.wide, .skip')) return false;
  return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map((e) => e.outerHTML.slice(0, 120));
"""

_LUMINANCE = """
const parse = (text) => {
  const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.fillStyle = text; context.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
};
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (a, b) => {
  const [light, dark] = [luminance(a), luminance(b)].sort((p, q) => q - p);
  return (light + 0.05) / (dark + 0.05);
};
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour[3] > 0.99) return colour.slice(0, 3);
  }
  return [255, 255, 255];
};
"""

_CONTRASTS = (
    _LUMINANCE
    + """
const seen = new Map();
for (const details of document.querySelectorAll('details')) details.open = true;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || ['SCRIPT', 'STYLE'].includes(element.tagName)) continue;
  const style = getComputedStyle(element);
  const colour = element instanceof SVGElement ? style.fill : style.color;
  const back = behind(element);
  const key = colour + back;
  if (!seen.has(key)) seen.set(key, [ratio(parse(colour).slice(0, 3), back), walker.currentNode.data.slice(0, 40)]);
}
return [...seen.values()];
"""
)

_SERIES_CONTRASTS = (
    _LUMINANCE
    + """
const style = getComputedStyle(document.documentElement), paper = parse(style.getPropertyValue('--paper')).slice(0, 3);
return [...Array(10).keys()].map((i) => {
  const colour = style.getPropertyValue('--s' + (i + 1)).trim();
  return [ratio(parse(colour).slice(0, 3), paper), colour];
});
"""
)

_DURATIONS = """
const done = arguments[0], sounds = [...document.querySelectorAll('audio')];
Promise.all(sounds.map((audio) => new Promise((ready) => {
  if (audio.readyState >= 1) return ready(audio.duration);
  audio.preload = "metadata";
  audio.addEventListener('loadedmetadata', () => ready(audio.duration), {once: true});
  audio.addEventListener('error', () => ready(-1), {once: true});
  audio.load();
}))).then(done);
"""

_COMPARE = """
const done = arguments[0], block = document.querySelector('.block');
const buttons = block.querySelectorAll('.play'), [first, ...others] = block.querySelectorAll('audio');
const second = others[Number(block.dataset.second) - 1];
const state = (audio) => audio.paused ? 'paused' : 'playing';
const reached = (audio, seconds) => new Promise((ready) => {
  const look = () => audio.currentTime > seconds ? ready() : setTimeout(look, 20);
  look();
});
(async () => {
  document.querySelector('#loop').click();
  document.querySelector('#match').click();
  buttons[0].click();
  await reached(first, 0.3);
  const before = first.currentTime, volume = first.volume;
  block.querySelector('.swap').click();
  await reached(second, before);
  done({first: state(first), second: state(second), before, seconds: second.currentTime, loop: second.loop,
        volumes: [volume, second.volume], error: null});
})().catch((error) => done({error: String(error)}));
"""
