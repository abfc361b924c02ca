"""A slide deck in the browser: paged with the keyboard, at the projector's size and at 150 % zoom, without the network."""

import pytest

from posetutor.course.slides import write_slides

ZOOM = {"100": 1.0, "150": 1.5}
# What a slide cuts off or squeezes; empty when all is well.
CUT = """() => {
  const inner = document.querySelector('.slide.on .inner'), faults = [];
  if (inner.scrollHeight > inner.clientHeight + 1) faults.push(`the text is ${inner.scrollHeight} px high, the slide ${inner.clientHeight}`);
  if (inner.scrollWidth > inner.clientWidth + 1) faults.push(`the text is ${inner.scrollWidth} px wide, the slide ${inner.clientWidth}`);
  for (const image of inner.querySelectorAll('img')) {
    const box = image.getBoundingClientRect();
    if (!image.complete || !image.naturalWidth) faults.push('a picture does not load');
    if (box.width < 60 || box.height < 40 || box.right > innerWidth + 1 || box.bottom > innerHeight + 1) faults.push(`a picture is ${Math.round(box.width)} x ${Math.round(box.height)} px`);
    if ((image.alt || '').length < 20) faults.push('a picture without alternative text');
  }
  return faults;
}"""


@pytest.fixture(scope="module")
def deck(browser, tmp_path_factory):
    """The slides of chapter 21."""
    return write_slides(["21"], tmp_path_factory.mktemp("slides"))[0]


@pytest.mark.parametrize("zoom", ZOOM)
def test_deck_is_paged_by_keyboard(deck, open_page, out, zoom):
    factor = ZOOM[zoom]
    page = open_page(round(1280 / factor), round(720 / factor), device_scale_factor=factor)
    page.goto(deck.as_uri())
    total = page.locator(".slide").count()
    assert total >= 8 and page.locator(".slide.on").count() == 1
    titles = []
    for number in range(total):
        page.wait_for_function("n => location.hash === `#${n}` || n === 1", arg=number + 1)
        assert page.evaluate("() => [...document.querySelectorAll('.slide')].findIndex(s => s.classList.contains('on'))") == number
        assert page.locator(".slide:visible").count() == 1
        titles.append(page.locator(".slide.on").get_attribute("aria-label"))
        faults = page.evaluate(CUT)
        if number < 3 or faults:
            page.screenshot(path=out / f"slides_21_zoom_{zoom}_{number + 1:02d}.png")
        assert not faults, f"slide {number + 1} ({titles[-1]}): {faults}"
        page.keyboard.press("ArrowRight")
    assert all(titles) and page.locator(".slide.on").get_attribute("aria-label") == titles[-1], "the last slide stays"
    page.keyboard.press("PageUp")
    assert page.locator(".slide.on").get_attribute("aria-label") == titles[-2]
    page.keyboard.press("Home")
    assert page.locator(".slide.on").get_attribute("aria-label") == titles[0]
    page.keyboard.press("n")
    assert page.locator(".notes:visible").count() == 1
    page.keyboard.press("n")
    assert page.locator(".notes:visible").count() == 0
    page.watch.assert_quiet()
