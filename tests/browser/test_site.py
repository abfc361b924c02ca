"""The built site in the browser: search, dark mode, a chapter with its printed twin, and nothing asked from another machine."""

import functools
import http.server
import threading
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parents[2] / "_out" / "site"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format, *args):  # noqa: A002 (the base class calls it so)
        pass


@pytest.fixture(scope="module", params=["file", "http"])
def site(request, browser):
    """Address of the site: opened from the disk, as a reader of the zip does, and served, as a class does."""
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built; type: make site")
    if request.param == "file":
        yield SITE.as_uri()
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_search_finds_a_term(site, open_page, out):
    page = open_page()
    page.goto(f"{site}/index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("heatmap")
    page.keyboard.press("Enter")
    hits = page.locator("#search-results li a")
    hits.first.wait_for()
    page.wait_for_function("() => /[1-9]/.test(document.querySelector('#search-results .search-summary, #search-results > p')?.textContent || '')")
    page.screenshot(path=out / "site_search.png")
    assert hits.count() >= 3
    hits.first.click()
    page.wait_for_load_state()
    assert "heatmap" in page.locator("main").inner_text().lower()
    page.watch.assert_quiet()


def test_dark_mode_is_chosen_and_kept(site, open_page, out):
    page = open_page()
    page.goto(f"{site}/index.html")
    ground = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((sum, v) => sum + Number(v), 0) / 3"
    page.get_by_role("button", name="Color mode").first.click()
    page.get_by_text("Dark", exact=True).locator("visible=true").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.wait_for_function(f"() => ({ground})() < 60")
    page.mouse.move(5, 400)
    page.screenshot(path=out / "site_dark.png")
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark", "the choice is kept"
    page.watch.assert_quiet()


def test_chapter_shows_the_twin_of_its_widget(site, open_page, out):
    page = open_page()
    page.goto(f"{site}/index.html")
    page.goto(site + "/" + next(p.relative_to(SITE).as_posix() for p in sorted(SITE.rglob("64_widgets.html"))))
    twins = page.locator("img[alt*='Static twin at']")
    assert twins.count() >= 3
    for number in range(twins.count()):
        twins.nth(number).scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=twins.nth(number).element_handle())
        shape = twins.nth(number).evaluate("i => [i.naturalWidth, i.getBoundingClientRect().width, i.getBoundingClientRect().right, innerWidth]")
        assert shape[0] > 300 and shape[1] > 200 and shape[2] <= shape[3], shape
    page.screenshot(path=out / "site_widgets.png")
    assert page.locator("img:not([alt])").count() == 0
    page.watch.assert_quiet()


@pytest.mark.parametrize("width", [1280, 853, 420])
def test_a_chapter_fits_the_window(site, open_page, out, width):
    """At full size, at 150 % zoom of the same window, and on a telephone: no page wider than the window."""
    page = open_page(width, 720)
    page.goto(site + "/" + next(p.relative_to(SITE).as_posix() for p in sorted(SITE.rglob("21_gaussian.html"))))
    page.screenshot(path=out / f"site_chapter_{width}.png")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width + 1
    page.watch.assert_quiet()
