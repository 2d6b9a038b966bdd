"""The built site in a browser, at the widths of a phone and of a desk: `make docs` first, which runs this."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from html import unescape
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parents[1] / "build" / "docs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
    pytest.mark.skipif(not (SITE / "docs" / "index.html").exists(), reason="the site is not built: make docs"),
]
# Loads each page into a frame and notes what does not fit or is not there.
CHECK = """<iframe style="width: WIDTHpx; height: 900px; border: 0"></iframe><pre></pre><script>
const frame = document.querySelector("iframe"), found = {};
async function look() {
  for (const page of PAGES) {
    await new Promise(done => { frame.onload = done; frame.src = page; });
    const inside = frame.contentDocument, root = inside.scrollingElement;
    found[page] = {
      wide: root.scrollWidth - root.clientWidth,
      broken: [...inside.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src),
      shown: inside.querySelectorAll(".cell_output").length,
    };
  }
  document.querySelector("pre").textContent = JSON.stringify(found);
}
look();</script>"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The site on loopback, with a page that looks at the others for each width."""
    pages = json.dumps([f"/{path.relative_to(SITE).as_posix()}" for path in sorted(SITE.rglob("*.html"))])
    checks = {f"/check-{width}": CHECK.replace("PAGES", pages).replace("WIDTH", str(width)) for width in (400, 1400)}

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path not in checks:
                return super().do_GET()
            content = checks[self.path].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=os.fspath(SITE))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("width", [400, 1400])
def test_no_page_is_wider_than_the_window_and_all_is_shown(address, width, tmp_path):
    dom = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={tmp_path}",
         f"--window-size={width + 50},1000", "--virtual-time-budget=600000", "--dump-dom", f"{address}/check-{width}"],
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    pages = json.loads(unescape(re.search(r"<pre>(.*?)</pre>", dom, re.DOTALL)[1]))
    assert len(pages) > 60
    assert {page: seen["wide"] for page, seen in pages.items() if seen["wide"] > 0} == {}
    assert {page: seen["broken"] for page, seen in pages.items() if seen["broken"]} == {}
    names = [path.stem for path in (Path(__file__).parents[1] / "examples").glob("*.ipynb")]
    notebooks = {name: pages[f"/examples/{name}.html"]["shown"] for name in names}
    assert len(notebooks) >= 8
    assert min(notebooks.values()) >= 4
