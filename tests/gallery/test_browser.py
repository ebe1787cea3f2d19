"""The web page of an index in a real browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hashgym.gallery import index_photos
from tests.features.small_models import transformers_folder
from tests.gallery.served import HOSTILE_NAMES, TOKEN, picture, serving, write_index
from tests.gallery.small import write_pictures

pytest.importorskip("flask")
pytest.importorskip("waitress")
sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NAMES = [f"{i}.png" for i in range(20)]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_index(tmp_path_factory.mktemp("browsed"))


@pytest.fixture(scope="module")
def address(index: Path) -> Iterator[str]:
    with serving(index, max_bytes=200_000) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api.expect.set_options(timeout=120_000)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, newly opened; at the end no other server was requested and no script has failed."""
    context = browser.new_context()
    page, faults = context.new_page(), []
    page.on("request", lambda r: None if r.url.startswith((address, "data:")) else faults.append(r.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on("console", lambda line: faults.append(line.text) if "Content Security" in line.text else None)
    page.goto(f"{address}/?token={TOKEN}")
    yield page
    context.close()
    assert faults == []


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def upload(data: bytes, name: str = "query.png") -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": data}


def pick(page: Any, *args: Any) -> None:
    page.set_input_files("input[type=file]", upload(*args))


def transfer(page: Any, data: bytes, name: str = "dropped.png") -> Any:
    """The data of a dropped or pasted file."""
    program = """([data, name]) => {
        const carried = new DataTransfer();
        carried.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, {type: "image/png"}));
        return carried;
    }"""
    return page.evaluate_handle(program, [base64.b64encode(data).decode(), name])


def heading(page: Any) -> Any:
    return page.locator("#results h2")


def first(page: Any) -> Any:
    return page.locator("#results .name").first


def test_a_picked_picture_shows_the_nearest_at_once(page: Any) -> None:
    sync_api.expect(page.locator("#results li")).to_have_count(0)
    pick(page, png(picture(3)), "<b>three</b>.png")
    sync_api.expect(heading(page)).to_have_text("12 nearest to <b>three</b>.png")
    sync_api.expect(page.locator("#status")).to_have_text("12 nearest to <b>three</b>.png")
    assert page.locator("#results .name").all_text_contents()[:2] == ["3.png", "20.png"]
    assert "0 of 48 bits differ" in page.locator("#results li").nth(0).inner_text()
    assert "matched: top right" in page.locator("#results li").nth(1).inner_text()
    shown = page.locator("#results .tile img, .query img").evaluate_all(
        "images => Promise.all(images.map((image) => image.decode().then(() => image.naturalWidth)))"
    )
    assert shown == [160, 160, 320, *[160] * 10]
    assert "nearest" in page.title().lower()


def test_a_dropped_and_a_pasted_picture_do_the_same(page: Any) -> None:
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer(page, png(picture(4)))})
    sync_api.expect(page.locator("body")).to_have_class(re.compile("dragging"))
    page.dispatch_event("body", "drop", {"dataTransfer": transfer(page, png(picture(4)))})
    sync_api.expect(heading(page)).to_have_text("12 nearest to dropped.png")
    sync_api.expect(first(page)).to_have_text("4.png")
    sync_api.expect(page.locator("body")).not_to_have_class(re.compile("dragging"))
    carried = transfer(page, png(picture(5)), "pasted.png")
    page.evaluate("carried => dispatchEvent(new ClipboardEvent('paste', {clipboardData: carried}))", carried)
    sync_api.expect(heading(page)).to_have_text("12 nearest to pasted.png")
    sync_api.expect(first(page)).to_have_text("5.png")


def test_a_result_is_the_next_query(page: Any, address: str) -> None:
    pick(page, png(picture(3)))
    page.locator("#results li a").nth(1).click()
    sync_api.expect(heading(page)).to_have_text("12 nearest to 20.png")
    sync_api.expect(page).to_have_url(re.compile(rf"^{re.escape(address)}/\?id="))
    sync_api.expect(first(page)).to_have_text("20.png")
    page.get_by_label("Results").fill("5")
    page.get_by_role("button", name="Search").click()
    sync_api.expect(heading(page)).to_have_text("5 nearest to 20.png")
    pick(page, png(picture(6)))
    sync_api.expect(heading(page)).to_have_text("5 nearest to query.png")
    sync_api.expect(page).to_have_url(f"{address}/")
    page.go_back()
    sync_api.expect(heading(page)).to_have_text("12 nearest to 20.png")


def test_the_number_of_results_can_be_chosen(page: Any) -> None:
    pick(page, png(picture(3)))
    page.get_by_label("Results").fill("2")
    page.get_by_label("Results").press("Enter")
    sync_api.expect(heading(page)).to_have_text("2 nearest to query.png")
    sync_api.expect(page.locator("#results li")).to_have_count(2)
    page.get_by_label("Results").fill("0")
    page.get_by_role("button", name="Search").click()
    assert not page.get_by_label("Results").evaluate("input => input.validity.valid")
    sync_api.expect(page.locator("#results li")).to_have_count(2)


def test_pages_of_results(page: Any, browser: Any, address: str) -> None:
    page.get_by_label("Results").fill("8")
    pick(page, png(picture(3)))
    sync_api.expect(heading(page)).to_have_text("8 nearest to query.png")
    page.get_by_role("button", name="Next").click()
    sync_api.expect(heading(page)).to_have_text("9 to 16 of the nearest to query.png")
    page.get_by_role("button", name="Next").click()
    sync_api.expect(heading(page)).to_have_text("17 to 22 of the nearest to query.png")
    sync_api.expect(page.get_by_role("button", name="Next")).to_have_count(0)
    page.get_by_role("button", name="Previous").click()
    sync_api.expect(heading(page)).to_have_text("9 to 16 of the nearest to query.png")
    page.get_by_role("button", name="Search").click()
    sync_api.expect(heading(page)).to_have_text("8 nearest to query.png")
    with closing(browser.new_context(java_script_enabled=False)) as context:
        plain = context.new_page()
        plain.goto(f"{address}/?token={TOKEN}")
        plain.goto(f"{address}/?id=3&k=8")
        plain.get_by_role("button", name="Next").click()
        sync_api.expect(heading(plain)).to_have_text("9 to 16 of the nearest to 3.png")
        pick(plain, png(picture(3)))
        plain.get_by_role("button", name="Search").click()
        sync_api.expect(heading(plain)).to_have_text("8 nearest to query.png")
        # The picture would have to be sent again; the style sheet, which hides the button, may come after the page.
        sync_api.expect(plain.get_by_role("button", name="Next")).to_have_count(0)


def test_words_are_searched_for_while_they_are_typed(browser: Any, tmp_path: Path) -> None:
    photos, (_, model) = write_pictures(tmp_path / "photos", NAMES), transformers_folder("clip", tmp_path)
    index_photos([photos], tmp_path / "index", bits=16, backbone=f"hf:{model}", backend="brute-force")
    with serving(tmp_path / "index", torch=True) as (address, _), closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(f"{address}/?token={TOKEN}")
        box = page.get_by_label("Or describe it")
        box.press_sequentially("a red car")
        sync_api.expect(heading(page)).to_have_text("12 nearest to “a red car”")
        page.get_by_role("button", name="Next").click()
        sync_api.expect(heading(page)).to_have_text("13 to 20 of the nearest to “a red car”")
        sync_api.expect(page).to_have_url(f"{address}/?text=a+red+car&k=12")
        pick(page, png(picture(3)))
        sync_api.expect(heading(page)).to_have_text("12 nearest to query.png")
        sync_api.expect(box).to_have_value("")
        page.go_back()
        sync_api.expect(heading(page)).to_have_text("12 nearest to “a red car”")
        sync_api.expect(box).to_have_value("a red car")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_unsearchable_picture_gets_a_message_and_the_page_still_works(page: Any) -> None:
    alert = page.get_by_role("alert")
    pick(page, png(picture(3))[:150], "half.png")
    sync_api.expect(alert).to_contain_text("image half.png is damaged or not a picture")
    pick(page, bytes(200_001), "large.png")
    sync_api.expect(alert).to_contain_text("too large")
    page.evaluate("dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer()}))")
    sync_api.expect(alert).to_contain_text("not a file")
    pick(page, png(picture(3)))
    sync_api.expect(heading(page)).to_have_text("12 nearest to query.png")
    sync_api.expect(alert).to_have_count(0)


def test_names_are_text_whatever_they_hold(page: Any) -> None:
    page.get_by_label("Results").fill("22")
    pick(page, png(picture(15)))
    sync_api.expect(page.locator("#results li")).to_have_count(22)
    names = page.locator("#results .name").all_text_contents()
    assert set(HOSTILE_NAMES) <= set(names)
    assert names[0] == HOSTILE_NAMES[0]
    sync_api.expect(page.locator("#results img")).to_have_count(23)


def test_the_address_is_needed_once_and_its_token_is_kept_from_scripts(browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    assert page.goto(address).status == 403
    sync_api.expect(page.locator("body")).to_contain_text("This page needs its token")
    page.goto(f"{address}/?token={TOKEN}")
    assert page.url == f"{address}/"
    assert page.evaluate("document.cookie") == ""
    assert TOKEN not in page.content()
    second = context.new_page()
    assert second.goto(address).status == 200
    context.clear_cookies()  # as when the server was started again
    pick(page, png(picture(3)))
    sync_api.expect(page.get_by_role("alert")).to_contain_text("This page needs its token")
    context.close()


def test_without_scripts_the_form_works_by_itself(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/?token={TOKEN}")
    sync_api.expect(page.get_by_text("Choose a picture")).to_be_visible()
    sync_api.expect(page.get_by_text("Drop a picture here")).to_be_hidden()
    pick(page, png(picture(3)))
    page.get_by_label("Results").fill("3")
    page.get_by_role("button", name="Search").click()
    sync_api.expect(heading(page)).to_have_text("3 nearest to query.png")
    page.get_by_role("button", name="Search").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("choose one first")
    page.go_back()
    page.locator("#results li a").nth(1).click()
    sync_api.expect(heading(page)).to_have_text("3 nearest to 20.png")
    page.get_by_role("button", name="Search").click()
    sync_api.expect(heading(page)).to_have_text("3 nearest to 20.png")
    pick(page, b"no picture", "none.jpg")
    page.get_by_role("button", name="Search").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("none.jpg is damaged or not a picture")
    context.close()


def test_the_keyboard_reaches_everything_and_shows_the_focus(page: Any) -> None:
    pick(page, png(picture(3)))
    heading(page).wait_for()
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
            const at = document.activeElement, seen = at.closest(".drop") ?? at;
            return [at.name || at.localName, getComputedStyle(seen).outlineStyle];
        }"""
            )
        )
    assert reached == [[name, "solid"] for name in ("a", "picture", "k", "button", "a", "a")]
    page.keyboard.press("Enter")
    sync_api.expect(heading(page)).to_have_text("12 nearest to 20.png")


CONTRAST = """() => {
    const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map((x) => x / 255)
            .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (!colour.startsWith("rgba")) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const texts = [...document.querySelectorAll("body *")].filter(
        (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()));
    return texts.map((node) => {
        const [a, b] = [light(getComputedStyle(node).color), light(ground(node))];
        return [node.textContent.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser: Any, address: str, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{address}/?token={TOKEN}")
    pick(page, png(picture(3)))
    heading(page).wait_for()
    measured = page.evaluate(CONTRAST)
    assert len(measured) > 30
    pick(page, b"", "empty.png")
    page.get_by_role("alert").wait_for()
    measured += page.evaluate(CONTRAST)
    assert [text for text, contrast in measured if contrast < 4.5] == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")
    context.close()


@pytest.mark.parametrize("width", [320, 1600])
def test_nothing_is_wider_than_the_window(browser: Any, address: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 700})
    page = context.new_page()
    page.goto(f"{address}/?token={TOKEN}")
    page.get_by_label("Results").fill("22")
    pick(page, png(picture(3, 60, 5)), "x" * 300)
    sync_api.expect(page.locator("#results li")).to_have_count(22)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_another_site_cannot_post_here(page: Any, browser: Any, address: str) -> None:
    context = browser.new_context()
    other = context.new_page()
    other.route("http://elsewhere.test/", lambda route: route.fulfill(body="<p>", content_type="text/html"))
    other.goto("http://elsewhere.test/")
    other.evaluate(
        """address => {
        const form = document.createElement("form");
        Object.assign(form, {method: "post", enctype: "multipart/form-data", action: address});
        document.body.append(form);
        form.submit();
    }""",
        address,
    )
    other.wait_for_url(f"{address}/")
    sync_api.expect(other.locator("body")).to_have_text("Requests of other sites are rejected.")
    context.close()


def test_a_server_that_is_gone_gets_a_message(browser: Any, index: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    with serving(index) as (address, process):
        page.goto(f"{address}/?token={TOKEN}")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 0
        pick(page, png(picture(3)))
        sync_api.expect(page.get_by_role("alert")).to_contain_text("is hashgym serve still running?")
    context.close()
