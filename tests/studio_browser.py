"""The notebook's studio in a real Chromium, against a real Jupyter server.

    python tests/studio_browser.py --out shots               # a story by mouse, and one by keyboard alone
    python tests/studio_browser.py --out shots --minutes 5   # and clicks: is memory flat?

Needs jupyterlab and playwright from PyPI, and a Chromium: `playwright install chromium`, or one of the
system's by --chromium PATH. Takes screenshots, and ends with the first check that does not hold.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import nbformat
from jupyter_client.blocking.client import BlockingKernelClient
from PIL import Image
from playwright.sync_api import Locator, Page, ViewportSize, sync_playwright

SIZE: ViewportSize = {"width": 1280, "height": 1080}
WAIT = 600_000  # ms: the machine may be busy
CELL = """import json

import fewstep

studio = fewstep.notebook.Studio(steps=1, mode="turbo", seed=7)
studio"""
SAME = """
names = {}
exec(studio.code(), names)
again = names[studio.code().split()[-1]]
same = [a.tobytes() == b.tobytes() for a, b in zip(again, studio.result, strict=True)]
print(json.dumps([sum(same), len(same)]))
"""
MEMORY = "print(int(open('/proc/self/statm').read().split()[1]) * 4096)"
IDLE = "!document.querySelector('.fewstep.busy')"
COUNT = """
window.drawn = 0;  // how often drawing ended
new MutationObserver((changes) => {
  const ended = ({ oldValue, target }) => /busy/.test(oldValue) && !/busy/.test(target.className);
  drawn += changes.filter(ended).length;
}).observe(document.querySelector('.fewstep'), { attributeFilter: ['class'], attributeOldValue: true });
"""
FOCUSED = """(() => {
  const element = document.activeElement;
  return element.ariaLabel || element.labels?.[0]?.textContent || element.textContent;
})()"""
EYES = ((0.25, 0.55), (0.75, 0.52), (0.75, 0.62), (0.25, 0.65))  # of the cat, in [0, 1] of the picture
COLOURS = ("red", "green", "blue", "yellow")


class Kernel:
    """A second client of the notebook's kernel, to look behind what the page shows."""

    def __init__(self, runtime: Path):
        (connection,) = runtime.glob("kernel-*.json")
        self.client = BlockingKernelClient(connection_file=str(connection))
        self.client.load_connection_file()
        self.client.start_channels()

    def run(self, code: str) -> Any:
        """Return what code printed, read as JSON."""
        printed: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = self.client.execute_interactive(code, timeout=120, output_hook=hook, store_history=False)
        assert reply["content"]["status"] == "ok", reply["content"]
        return json.loads("".join(printed)) if printed else None


@contextmanager
def jupyter(folder: Path) -> Iterator[str]:
    """Serve a folder with one notebook, with settings of its own; yields the address."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])  # type: ignore[no-untyped-call]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    news = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')
    nbformat.write(notebook, folder / "studio.ipynb")  # type: ignore[no-untyped-call]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = (
        "JUPYTER_CONFIG",
        "JUPYTER_DATA",
        "JUPYTER_RUNTIME",
        "JUPYTERLAB_SETTINGS",
        "JUPYTERLAB_WORKSPACES",
    )
    places = {f"{name}_DIR": str(folder / name.rpartition("_")[2].lower()) for name in names}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--IdentityProvider.token=",
        "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(command, env={**os.environ, **places}, stdout=log, stderr=log)
    try:
        end = time.monotonic() + WAIT / 1000
        while time.monotonic() < end and server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/doc/tree/studio.ipynb?reset"
    finally:
        server.terminate()
        server.wait(30)


def open_notebook(page: Page, address: str) -> None:
    """Open the notebook, and run its cell."""
    page.goto(address)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text("| Idle").wait_for()
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    page.locator(".fewstep").wait_for()
    page.evaluate(COUNT)


class Studio:
    """The widget on its page, used as a person would."""

    def __init__(self, page: Page, out: Path):
        self.page, self.out, self.root = page, out, page.locator(".fewstep")
        self.cells = self.root.locator(".gallery").get_by_role("option")

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name, exact=True)

    @contextmanager
    def draws(self, label: str) -> Iterator[None]:
        """Wait until what is asked for in here is drawn, and is where the trail says one is."""
        before = self.page.evaluate("drawn")
        yield
        self.page.wait_for_function(f"drawn > {before} && {IDLE}")
        here = self.root.locator(".trail [aria-current=step]")
        here.get_by_text(label, exact=True).wait_for()
        problem = self.root.get_by_role("alert")
        assert not problem.is_visible(), problem.inner_text()

    def shoot(self, name: str) -> None:
        self.page.wait_for_timeout(400)  # transitions end
        self.page.screenshot(path=self.out / f"{name}.png")

    def portrait(self, name: str) -> None:
        """Take a picture of the widget alone, of 256 colours: docs/studio.png."""
        self.page.set_viewport_size({"width": 1180, "height": 1400})
        self.page.wait_for_timeout(400)
        picture = Image.open(io.BytesIO(self.root.screenshot())).convert("RGB")
        picture.quantize(palette=picture.quantize(256)).save(self.out / f"{name}.png", optimize=True)
        self.page.set_viewport_size(SIZE)

    def theme(self, name: str) -> None:
        self.page.evaluate(
            f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {name}'}})"
        )
        self.page.wait_for_function(f"document.querySelector('.fewstep').dataset.theme === '{name.lower()}'")

    def brush(self, *path: tuple[float, float]) -> None:
        """Paint with the mouse along points in [0, 1] of the large picture."""
        canvas = self.root.locator("canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        for number, (x, y) in enumerate(path):
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
            if number == 0:
                self.page.mouse.down()
        self.page.mouse.up()


def by_mouse(studio: Studio, kernel: Kernel) -> None:
    """Draft, stop, pick, refine, mask, inpaint, vary, go back."""
    page, root = studio.page, studio.root
    studio.shoot("1-empty")
    root.get_by_role("textbox", name="Prompt").first.click()
    page.keyboard.type("a smiling", delay=40)
    page.wait_for_timeout(500)  # drafts begin
    page.keyboard.type(" cat face, 3d style", delay=40)  # and are stopped for newer ones
    studio.root.locator("code").get_by_text("a smiling cat face, 3d style").wait_for(
        state="attached", timeout=WAIT
    )
    page.wait_for_function(IDLE)
    studio.shoot("2-drafts")

    root.get_by_label("Mode").first.select_option("lcm")
    page.get_by_text("Drawing: step 2 of 4").wait_for()
    studio.shoot("3-previews")
    studio.button("Stop").click()
    page.get_by_text("Stopped").wait_for()
    with studio.draws("8 drafts"):
        root.get_by_label("Mode").first.select_option("turbo")

    for number in (1, 4, 6):
        studio.cells.nth(number).click()
    assert kernel.run("print(studio.picked)") == [1, 4, 6]
    studio.shoot("4-picked")
    studio.brush(*EYES)
    root.get_by_placeholder("what is to be there").fill("sunglasses, 3d style")
    studio.portrait("studio")
    studio.button("Clear").click()
    with studio.draws("3 refined"):
        studio.button("Refine 3").click()
    studio.shoot("5-refined")

    studio.cells.nth(1).click()
    studio.brush(*EYES)
    studio.shoot("6-masked")
    with studio.draws("inpainted"):
        studio.button("Inpaint").click()
    studio.shoot("7-inpainted")
    same, pictures = kernel.run(SAME)
    print(f"  the code draws the same: {same} of {pictures}")
    assert same == pictures == 1

    studio.theme("Dark")
    with studio.draws("8 varied"):
        studio.button("Vary").click()
    root.get_by_text("Code", exact=True).click()
    studio.shoot("8-varied-dark")
    root.locator("pre").scroll_into_view_if_needed()
    studio.shoot("9-code-dark")
    root.get_by_text("Code", exact=True).click()
    root.locator(".trail button").first.click()
    root.locator(".trail [aria-current=step]").get_by_text("8 drafts").wait_for()
    studio.theme("Light")
    page.set_viewport_size({"width": 560, "height": 1500})
    studio.shoot("10-narrow")
    page.set_viewport_size(SIZE)


def by_keyboard(studio: Studio, kernel: Kernel) -> None:
    """The same without a mouse: Tab leads everywhere, and the notebook's own keys do nothing in here."""
    page, keys = studio.page, studio.page.keyboard
    cells_before = page.locator(".jp-Cell").count()

    def tab_to(name: str, *, back: bool = False) -> None:
        """Press Tab until what has this name has the focus."""
        for _ in range(60):
            keys.press("Shift+Tab" if back else "Tab")
            if page.evaluate(FOCUSED).startswith(name):
                return
        raise AssertionError(f"Tab does not lead to {name!r}")

    def write(text: str) -> None:
        keys.press("Control+a")
        keys.type(text)

    studio.root.get_by_role("textbox", name="Prompt").first.focus()
    with studio.draws("8 drafts"):
        write("a red apple, 3d style")
        keys.press("Enter")
    tab_to("Steps")
    with studio.draws("8 drafts"):
        keys.press("ArrowRight")
    assert kernel.run("print(studio.result.plan.request.steps)") == 2
    tab_to("Picture 0")
    keys.press("ArrowDown")
    keys.press("Space")
    keys.press("ArrowRight")
    keys.press("Enter")
    for key in ("a", "b", "d", "d", "x", "m"):  # Jupyter's: new cells, delete, cut, markdown
        keys.press(key)
    assert kernel.run("print(studio.picked)") == [4, 5]
    assert page.locator(".jp-Cell").count() == cells_before
    studio.shoot("11-keyboard-picked")
    tab_to("Refine 2")
    with studio.draws("2 refined"):
        keys.press("Enter")
    tab_to("Mask.")
    strokes = [*["Shift+ArrowLeft"] * 5, "Space", "x", "Shift+ArrowRight", "x", "+"]  # x erases, and paints
    for key in (*["ArrowUp"] * 4, *strokes):
        keys.press(key)
    studio.shoot("12-keyboard-masked")
    tab_to("Prompt")
    with studio.draws("inpainted"):
        write("a green leaf")
        keys.press("Enter")
    same, pictures = kernel.run(SAME)
    print(f"  the code draws the same: {same} of {pictures}")
    assert same == pictures == 1
    tab_to("8 drafts", back=True)
    keys.press("Enter")
    studio.root.locator(".trail [aria-current=step]").get_by_text("8 drafts").wait_for()
    assert page.evaluate(FOCUSED) == "8 drafts"
    studio.root.get_by_role("textbox", name="Prompt").first.focus()
    keys.press("Enter")
    keys.press("Escape")
    page.wait_for_function(IDLE)


def click_for(minutes: float, studio: Studio, kernel: Kernel) -> None:
    """Click all there is, round after round, and print what memory does."""
    session = studio.page.context.new_cdp_session(studio.page)
    session.send("Performance.enable")
    end, rounds = time.monotonic() + 60 * minutes, 0
    figures: list[tuple[float, float]] = []
    while time.monotonic() < end or rounds < 3:
        studio.root.get_by_role("textbox", name="Prompt").first.fill(
            f"a {COLOURS[rounds % len(COLOURS)]} heart, flat style"
        )
        with studio.draws("8 drafts"):
            studio.button("Draft").click()
        for number in (0, 3, 5, 3):
            studio.cells.nth(number).click()
        with studio.draws("2 refined"):
            studio.button("Refine 2").click()
        studio.brush((0.3, 0.3), (0.7, 0.7))
        with studio.draws("inpainted"):
            studio.button("Inpaint").click()
        with studio.draws("8 varied"):
            studio.button("Vary").click()
        with studio.draws("8 drafts"):
            studio.button("New seeds").click()
        rounds += 1
        session.send("HeapProfiler.collectGarbage")
        heap = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}[
            "JSHeapUsedSize"
        ]
        figures.append((kernel.run(MEMORY) / 2**20, heap / 2**20))
        print(
            f"  round {rounds}: kernel {figures[-1][0]:.0f} MiB, page's heap {figures[-1][1]:.1f} MiB",
            flush=True,
        )
    third = len(figures) // 3
    for name, values in zip(("kernel", "page's heap"), zip(*figures, strict=True), strict=True):
        early, late = median(values[third : 2 * third + 1]), median(values[-third:])
        print(f"  {name}: median {early:.1f} MiB in the middle third, {late:.1f} MiB in the last")
        assert late < 1.05 * early + 2, f"{name} grows"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--out", type=Path, default=Path("shots"), help="folder for screenshots")
    arguments.add_argument("--minutes", type=float, default=0.0, help="how long to click for flat memory")
    arguments.add_argument("--chromium", help="a Chromium of the system, in place of playwright's")
    chosen = arguments.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as browsers,
        jupyter(Path(folder)) as address,
    ):
        browser = browsers.chromium.launch(executable_path=chosen.chromium, args=["--no-sandbox"])
        # Without a GPU Chromium's animations would take the time of the drawing.
        page = browser.new_page(viewport=SIZE, reduced_motion="reduce")
        page.set_default_timeout(WAIT)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        try:
            open_notebook(page, address)
            studio, kernel = Studio(page, chosen.out), Kernel(Path(folder) / "runtime")
            print("by mouse")
            by_mouse(studio, kernel)
            print("by keyboard alone")
            by_keyboard(studio, kernel)
            if chosen.minutes:
                print(f"clicking for {chosen.minutes:g} minutes")
                click_for(chosen.minutes, studio, kernel)
        except BaseException:
            page.screenshot(path=chosen.out / "failed.png")
            raise
        outside = [url for url in requests if not url.startswith(("http://127.0.0.1", "blob:", "data:"))]
        assert not errors, errors
        assert not outside, outside
        print("no error in the page, nothing fetched from outside")


if __name__ == "__main__":
    main()
