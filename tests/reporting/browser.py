"""A page in real headless Chromium, and every request that the browser makes for it."""

import html
import json
import re
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

_HOST = "http://report.test"
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps"),
    *("--proxy-bypass-list=<-loopback>", "--virtual-time-budget=20000", "--dump-dom"),
)
_OWN = re.compile(r"(//|^)([\w-]+\.)*(google\.com|googleapis\.com|gvt1\.com|gstatic\.com)[:/]")
"""What Chromium asks for by itself, whatever its flags. A page's own requests are in its ``performance``, too."""
_HARNESS = """<!DOCTYPE html><link rel="icon" href="data:,">
<iframe src="/page.html" width="{width}" height="900"></iframe>
<pre id="result"></pre><script>
document.querySelector("iframe").addEventListener("load", async (event) => {{
  const window = event.target.contentWindow, document_ = event.target.contentDocument;
  let result;
  try {{ result = await (async (window, document) => {{ {script} }})(window, document_); }}
  catch (error) {{ result = {{error: String(error)}}; }}
  document.getElementById("result").textContent = JSON.stringify(result);
}});
</script>"""


@dataclass
class Visit:
    """What a script found in a page, and what the browser asked for."""

    found: Any
    requests: list[str] = field(default_factory=list)
    """All but those for the page itself."""


def chromium() -> str:
    """The browser's path. Skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium to open the page in (Debian: apt-get install chromium)")
    return found


def visit(page: str, script: str, width: int = 1280) -> Visit:
    """Open a page, run the body of an async function of ``window`` and ``document`` in it, and return what it returns.

    All traffic of the browser goes through a proxy of ours, which answers for the page and for nothing else.
    """
    texts = {f"{_HOST}/page.html": page, f"{_HOST}/": _HARNESS.format(width=width, script=script)}
    requests: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = texts.get(self.path)
            if text is None:
                requests.append(self.path)
                self.send_error(404)
                return
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_CONNECT(self) -> None:
            requests.append(self.path)
            self.send_error(403)

        def log_message(self, format: str, *args: object) -> None:
            pass

    browser = chromium()
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy, tempfile.TemporaryDirectory() as profile:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        flags = [*_FLAGS, f"--proxy-server=http://127.0.0.1:{proxy.server_port}", f"--user-data-dir={profile}"]
        try:
            result = subprocess.run([browser, *flags, _HOST], capture_output=True, text=True, timeout=300, check=True)
        finally:
            proxy.shutdown()
            thread.join()
    match = re.search(r'<pre id="result">(.*?)</pre>', result.stdout, re.DOTALL)
    assert match is not None, result.stdout[-2000:] + result.stderr[-2000:]
    assert match[1], result.stderr[-2000:]
    return Visit(json.loads(html.unescape(match[1])), [url for url in requests if not _OWN.search(url)])
