"""Draws docs/page.png from docs/page.html in a browser: an untrained network and a 2, from the outputs to the pixels.

python -m tests.page_picture
"""

import shutil
from base64 import b64encode
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import ViewportSize, sync_playwright

DOCS = Path(__file__).parent.parent / "docs"
STEPS = (1, 2, 3, 4)

FRAMES = """
<style>
body { margin: 0; padding: 36px 40px 28px; width: 1720px; background: #fff; color: #1b2430;
  font: 23px/1.3 system-ui, "DejaVu Sans", sans-serif; display: grid; grid-template-columns: 1fr 1fr; gap: 40px 56px; }
figure { margin: 0; } figcaption { font-weight: 650; margin-bottom: 14px; } img { width: 100%; display: block; }
</style>
"""


def main() -> None:
    """Take a picture of each step, and one of them all."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        size: ViewportSize = {"width": 1400, "height": 1000}
        page = browser.new_page(viewport=size, device_scale_factor=2, reduced_motion="reduce")
        frames = FRAMES
        for step in STEPS:
            page.goto("about:blank")
            page.goto(f"{(DOCS / 'page.html').as_uri()}#step={step}&image=2&neuron={max(1, 5 - step)}.2")
            page.wait_for_selector("#title:not(:empty)")
            page.evaluate(
                "for (const part of document.querySelectorAll('#picker, .mark')) part.style.visibility = 'hidden'"
            )
            title = page.locator("#steps [aria-current]").get_attribute("title")
            drawn = b64encode(page.locator("#net").screenshot()).decode()
            frames += f'<figure><figcaption>{title}</figcaption><img src="data:image/png;base64,{drawn}"></figure>'
        sheet = browser.new_page(viewport={"width": 1800, "height": 1000})
        sheet.set_content(frames)
        picture = Image.open(BytesIO(sheet.locator("body").screenshot()))
        picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            DOCS / "page.png", optimize=True
        )
        browser.close()


if __name__ == "__main__":
    main()
