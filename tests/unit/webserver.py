"""A web server on loopback that can be told to behave badly."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(kw_only=True)
class Page:
    """What an address answers with; ``breaks_at`` and ``stalls_at`` count bytes of one answer."""

    content: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    breaks_at: int | None = None
    stalls_at: int | None = None
    drips: bool = False
    length: int | None = None
    says_length: bool = True
    says_range: str | None = None
    encoding: str | None = None
    redirect: str | None = None
    asked: list[dict[str, str]] = field(default_factory=list)


class WebServer:
    """The server's pages by their paths, and where it is."""

    def __init__(self, port: int) -> None:
        self.pages: dict[str, Page] = {}
        self.url = f"http://127.0.0.1:{port}"
        self.over = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: WebServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        page = self.web.pages.get(self.path)
        if page is None:
            self.send_error(404)
            return
        page.asked.append(dict(self.headers))
        if page.redirect is not None:
            self.send_response(302)
            self.send_header("Location", page.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if page.etag is not None and self.headers.get("If-None-Match") == page.etag:
            self.send_response(304)
            self.end_headers()
            return
        self._answer(page, self._start(page))

    def _start(self, page: Page) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (page.etag, page.modified)
        return int(asked[1]) if asked and page.ranges and same else 0

    def _answer(self, page: Page, start: int) -> None:
        content = page.content[start:]
        total = len(page.content)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", page.says_range or f"bytes {start}-{total - 1}/{total}")
        if page.says_length:
            self.send_header("Content-Length", str(page.length if page.length is not None else len(content)))
        for name, value in (("ETag", page.etag), ("Last-Modified", page.modified), ("Content-Encoding", page.encoding)):
            if value is not None:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if page.drips:
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.web.over.wait(0.02):
                    return
            return
        ends = [end for end in (page.breaks_at, page.stalls_at) if end is not None]
        self.wfile.write(content[: min(ends)] if ends else content)
        self.wfile.flush()
        if page.stalls_at is not None:
            self.web.over.wait(30)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Clients go away in the middle: that is what is tested."""


@contextmanager
def web_server() -> Iterator[WebServer]:
    """Serve pages on a free port of loopback until the block ends."""

    class Handler(_Handler):
        pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        web = Handler.web = WebServer(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield web
        finally:
            web.over.set()
            server.shutdown()
            thread.join()
