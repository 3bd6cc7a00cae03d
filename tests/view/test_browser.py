"""The page in a real browser: an image is dropped, every panel appears, and what stands under the pointer is what the
arrays say."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import polyptych

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

HEIGHT, WIDTH = 96, 128

DROP = """async ([data, name]) => {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name));
    for (const kind of ["dragover", "drop"]) {
        document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
    }
}"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two untrained runs with different tasks."""
    from dataclasses import replace

    import torch

    from polyptych.backbones.timm import Timm
    from polyptych.checkpoint import write_tensors
    from polyptych.datasets.rooms import Rooms
    from polyptych.recipes.rooms import rooms
    from polyptych.run import Facts, with_tasks, write_run

    folders = []
    for name, tasks in (("all", list(rooms().tasks)), ("two", ["semseg", "depth"])):
        folder = tmp_path_factory.mktemp("view") / name
        (folder / "checkpoints").mkdir(parents=True)
        run = with_tasks(replace(rooms(), dataset=Rooms.Config(size=(48, 64)), size=(48, 64),
                                 backbone=Timm.Config(model="test_resnet")), tasks)
        facts = Facts.of(run.build_dataset("val"))
        torch.manual_seed(len(folders))
        network = run.build_network(run.build_tasks(facts.labels), pretrained=False)
        write_run(folder / "run.json", run, facts)
        write_tensors(folder / "checkpoints" / "last.safetensors",
                      {f"network.{key}": value for key, value in network.state_dict().items()}, {"step": 0})
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def address(runs):
    """Where `polyptych view` says that the page is."""
    command = [sys.executable, "-m", "polyptych", "view", *map(str, runs), "--no-browser", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+/) shows all \(rooms-1-48x64\), two ", said)
        assert found, said
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, "Ctrl-C is how one stops it"


@pytest.fixture
def page(address):
    """The page, opened; nothing it does may be refused or fail unseen."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text)
                if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.append(request.url))
        elsewhere: list[str] = []
        page.on("request", lambda request: elsewhere.append(request.url)
                if not request.url.startswith((address, "data:", "blob:")) else None)
        page.goto(address)
        page.wait_for_selector("#models button")
        yield page
        assert not elsewhere, "everything comes from this machine"
        assert not [fault for fault in faults if "400 (Bad Request)" not in fault]
        browser.close()


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    """Patches of color: neighboring pixels have different predictions somewhere."""
    random = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return random.repeat(HEIGHT // 6, 0).repeat(WIDTH // 8, 1)


def drop(page, data: bytes, name: str = "room.png") -> None:
    page.evaluate(DROP, [base64.b64encode(data).decode(), name])


def png(array) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def settled(page, tasks) -> None:
    """All panels are there, loaded and drawn."""
    page.wait_for_selector("#panels[data-ready]:has(.card):not(:has(.waiting))")
    assert page.eval_on_selector_all(".card", "cards => cards.map(c => c.dataset.task)") == list(tasks)
    sizes = page.eval_on_selector_all(".stage img", "all => all.map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes == [[WIDTH, HEIGHT]] * (2 * len(tasks))


def point_at(page, task: str, x: int, y: int) -> dict[str, str]:
    """Move the pointer to a pixel of a panel; what all panels then say."""
    stage = page.locator(f".card[data-task={task}] .stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + (x + 0.5) * box["width"] / WIDTH, box["y"] + (y + 0.5) * box["height"] / HEIGHT)
    page.wait_for_selector(f"#panels[data-at='{x} {y}']")
    return dict(page.eval_on_selector_all(
        ".card", "cards => cards.map(c => [c.dataset.task, c.querySelector('.value').textContent])"))


def shot(page, selector: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(page.locator(selector).first.screenshot())).convert("RGB"))


def test_a_dropped_image(page, runs, array) -> None:
    """All panels appear, and the words under the pointer are those of the arrays."""
    scene = polyptych.load(runs[0], device="cpu").predict(array)
    assert page.is_visible("#empty")
    drop(page, png(array))
    settled(page, scene.tasks)
    assert re.match(r"room\.png: 128 . 96, predicted in", page.text_content("#status"))
    rng = np.random.default_rng(0)
    for task in ("semseg", "depth", "keypoints"):
        for x, y in ((0, 0), (WIDTH - 1, HEIGHT - 1), *zip(rng.integers(0, WIDTH, 5), rng.integers(0, HEIGHT, 5),
                                                           strict=True)):
            said = point_at(page, task, int(x), int(y))
            assert said == {name: scene.at(name, int(x), int(y)) for name in scene.tasks}
            # And against the numbers themselves.
            assert said["semseg"] == scene.classes("semseg")[scene.semseg[y, x]]
            assert float(said["depth"].removesuffix(" m")) == pytest.approx(scene.depth[y, x], abs=0.00501)
            normal = [float(v) for v in said["normals"].strip("()").split(",")]
            assert normal == pytest.approx(scene.normals[y, x].tolist(), abs=0.00501)
            assert page.text_content(".card[data-task=semseg] li.here") == said["semseg"]


def test_the_page_shows_the_pictures(page, runs, array) -> None:
    """Left of the slider the image, right of it the prediction, mixed by the opacity: measured on the screen."""
    scene = polyptych.load(runs[0], device="cpu").predict(array)
    drop(page, png(array))
    settled(page, scene.tasks)

    def screen(split: int, opacity: int, plain: bool, task: str) -> np.ndarray:
        page.locator("#split").fill(str(split))
        page.locator("#opacity").fill(str(opacity))
        page.set_checked("#plain", plain)
        page.evaluate("""() => {
            const sheet = new CSSStyleSheet();
            sheet.replaceSync(`.divider, .crosshair { display: none !important }
                               .layer { transition: none !important }`);  // or a change is seen halfway
            document.adoptedStyleSheets = [sheet];
        }""")
        page.wait_for_load_state("networkidle")
        pixels = shot(page, f".card[data-task={task}] .stage")
        rows = ((np.arange(HEIGHT) + 0.5) * len(pixels) / HEIGHT).astype(int)
        columns = ((np.arange(WIDTH) + 0.5) * pixels.shape[1] / WIDTH).astype(int)
        return pixels[rows][:, columns].astype(int)

    def agree(seen, expected) -> bool:
        # Borders between pixels of the image fall between pixels of the screen.
        return np.mean(np.abs(seen - expected).max(-1) <= 4) > 0.98

    half = WIDTH // 2
    for task in ("semseg", "boundaries"):
        seen = screen(50, 100, False, task)
        assert agree(seen[:, :half - 1], array[:, :half - 1])
        assert agree(seen[:, half + 1:], scene.overlay(task, 1)[:, half + 1:])
        assert agree(screen(0, 40, False, task), scene.overlay(task, 0.4))
        assert agree(screen(0, 100, True, task), scene.panel(task))
        assert agree(screen(100, 100, False, task), array)


def test_the_slider_follows_the_pointer(page, array) -> None:
    drop(page, png(array))
    page.wait_for_selector("#panels[data-ready]")
    box = page.locator(".stage").first.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 50)
    page.mouse.up()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 50)
    assert float(page.input_value("#split")) == pytest.approx(75, abs=0.5)
    assert page.evaluate("getComputedStyle(document.querySelector('.layer')).clipPath").endswith(
        f"{page.input_value('#split')}%)")


def test_switching_runs(page, runs, array) -> None:
    """The same image, other tasks, other numbers."""
    drop(page, png(array))
    page.wait_for_selector("#panels[data-ready]")
    page.get_by_role("tab", name="two (rooms-1-48x64)").click()
    page.wait_for_selector(".card:nth-child(2):last-child")
    settled(page, ("semseg", "depth"))
    scene = polyptych.load(runs[1], device="cpu").predict(array)
    assert point_at(page, "depth", 70, 30) == {name: scene.at(name, 70, 30) for name in scene.tasks}
    page.get_by_role("tab", name="all (rooms-1-48x64)").click()
    page.wait_for_selector(".card:nth-child(7):last-child")
    assert page.get_attribute("#models button >> nth=0", "aria-selected") == "true"


def test_legends(page, runs, array) -> None:
    drop(page, png(array))
    page.wait_for_selector("#panels[data-ready]")
    scene = polyptych.load(runs[0], device="cpu").predict(array)
    listed = page.eval_on_selector_all(
        ".card[data-task=semseg] li", "all => all.map(i => [i.textContent, i.querySelector('i').style.background])")
    shown = scene.legend("semseg").occurring(scene.areas("semseg"))
    assert listed == [[name, f"rgb({r}, {g}, {b})"] for name, (r, g, b) in shown.entries]
    assert page.text_content(".card[data-task=depth] .ticks") == "0 m5 m10 m"
    last = "document.querySelector('.card[data-task=boundaries] .scale').style.background.split('rgb').at(-1)"
    assert page.evaluate(last).startswith("(255, 48, 32)"), "of what is laid over the image"
    page.set_checked("#plain", True)
    assert page.evaluate(last).startswith("(0, 0, 0)"), "of the panel itself"


def test_what_is_no_image(page) -> None:
    drop(page, b"not an image", "<img src=x onerror=alert(1)>.png")
    page.wait_for_selector("#status.error")
    said = page.text_content("#status")
    assert said.startswith("<img src=x onerror=alert(1)>.png: image: got an unreadable file")
    assert page.is_visible("#empty") and not page.query_selector("#status img")
    page.evaluate("""() => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(32 * 2 ** 20 + 1)], "huge.png"));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
    }""")
    page.get_by_text("huge.png: a file of more than 32 MiB").wait_for()


def test_a_file_from_the_dialog(page, array, tmp_path) -> None:
    (tmp_path / "chosen.png").write_bytes(png(array))
    page.set_input_files("#file", tmp_path / "chosen.png")
    page.wait_for_selector("#panels[data-ready]")
    assert "chosen.png" in page.text_content("#status")
