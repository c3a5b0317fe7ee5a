"""A server on this machine, for tests of downloads."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


class Handler(BaseHTTPRequestHandler):
    """What subclasses need to answer requests, also for the rest of a file."""

    def first_byte(self) -> int:
        """Where the rest begins that is asked for."""
        found = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        return int(found[1]) if found else 0

    def send_rest(self, body, start, claimed=None, sized=True, cut=False):
        """`body` from `start` on, said to be from `claimed` on; without its length, or only half of it."""
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {claimed or start}-{len(body) - 1}/{len(body)}")
        if sized:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        body = body[start:]
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *args):
        """Nothing."""


@contextmanager
def serving(handler, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    """The server, whose `base` is its address and whose `log` is the handler's to write; no proxy is used."""
    for variable in PROXIES:
        monkeypatch.delenv(variable, raising=False)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.log = []
    httpd.base = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()
