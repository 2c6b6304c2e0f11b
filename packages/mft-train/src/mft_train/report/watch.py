"""The report on a run while it goes on, for a browser on this machine: a page that follows the run's files."""

from __future__ import annotations

import contextlib
import errno
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast

from mft_train.errors import TrainError
from mft_train.report.page import waiting_page
from mft_train.report.report import html_report, run_name

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = "127.0.0.1"  # of this machine alone


class ReportServer(ThreadingHTTPServer):
    """Serves the page about one run, made anew when its files have changed; raises TrainError for a taken port."""

    daemon_threads = True

    def __init__(self, run_dir: Path, port: int) -> None:
        if not run_dir.is_dir():
            raise TrainError(f'run "{run_dir}" is not a directory', fix="name the output of `mft-train launch`")
        try:
            super().__init__((ADDRESS, port), ReportHandler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            reason = "is taken" if error.errno == errno.EADDRINUSE else "is not allowed"
            raise TrainError(
                f"port {port} {reason}", fix="choose another with --port; 0 is any that is free"
            ) from error
        self.run_dir = run_dir
        self.made: tuple[str, bytes] = ("", b"")
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def version(self) -> str:
        """Another text whenever a file that the report is made of has changed."""
        parts = []
        for name in ("metrics.jsonl", "config.yaml"):
            with contextlib.suppress(OSError):
                status = (self.run_dir / name).stat()
                parts.append(f"{status.st_size}-{status.st_mtime_ns}")
        return " ".join(parts) or "none"

    def page(self) -> bytes:
        """The page as the files are now."""
        with self.lock:
            version = self.version()
            if self.made[0] != version:
                try:
                    content = html_report(self.run_dir, version)
                except (TrainError, OSError) as error:
                    reason = error.message if isinstance(error, TrainError) else str(error)
                    content = waiting_page(run_name(self.run_dir), f"Nothing to show yet: {reason}.", version).encode()
                self.made = (version, content)
            return self.made[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that has gone while it was answered."""


class ReportHandler(BaseHTTPRequestHandler):
    """Answers GET for the page and for its version, to whoever calls this server by its own name."""

    def do_GET(self) -> None:
        """One request."""
        report = cast("ReportServer", self.server)
        # A page of elsewhere could otherwise let a browser read this one under a name of its own.
        if self.headers.get("Host") not in (f"{name}:{report.server_port}" for name in (ADDRESS, "localhost")):
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            self.answer(report.page(), "text/html")
        elif self.path == "/version":
            self.answer(report.version().encode(), "text/plain")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def answer(self, content: bytes, kind: str) -> None:
        """Sends a document."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002
        """Requests are not told."""
