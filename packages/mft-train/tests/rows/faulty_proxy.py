"""A proxy on loopback before an HTTP server that answers some requests with faults."""

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyProxy:
    """Passes GET and HEAD on to `port`; `faults` maps the end of a path to faults, in order, each for one GET.

    A fault is "error" (500), "stall" (half the body, then nothing for `stall_seconds`), "truncate" (half the body and a
    closed connection), "flip" (one byte changed) or "short" (half the body under a length that fits). A list that ends
    in "..." repeats the fault before it for ever. `served` counts the whole answers by path.
    """

    def __init__(self, port: int, stall_seconds: float = 5.0):
        self.faults: dict[str, list[str]] = {}
        self.served: dict[str, int] = {}
        self.lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def answer(self):
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                upstream.request(self.command, self.path, headers=dict(self.headers))
                response = upstream.getresponse()
                body = response.read()
                fault = proxy.next_fault(self.path.partition("?")[0]) if self.command == "GET" else None
                status = 500 if fault == "error" else response.status
                if fault == "flip":
                    body = body[:-1] + bytes([body[-1] ^ 1])
                elif fault in ("short", "error"):
                    body = body[: len(body) // 2]
                self.send_response(status)
                for name, value in response.getheaders():
                    is_body = name.lower() in ("content-length", "transfer-encoding", "connection")
                    is_checksum = name.lower().startswith("x-amz-checksum")
                    if not is_body and not is_checksum:
                        self.send_header(name, value)
                length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault in ("truncate", "stall"):
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    if fault == "stall":
                        time.sleep(stall_seconds)
                    self.close_connection = True
                    return
                self.wfile.write(body)
                with proxy.lock:
                    proxy.served[self.path] = proxy.served.get(self.path, 0) + 1

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def next_fault(self, path: str) -> str | None:
        with self.lock:
            for ending, faults in self.faults.items():
                if path.endswith(ending) and faults:
                    return faults[0] if faults[1:] == ["..."] else faults.pop(0)
        return None

    def count(self, ending: str) -> int:
        """Whole answers to paths with this ending."""
        return sum(count for path, count in self.served.items() if path.partition("?")[0].endswith(ending))

    def close(self):
        self.server.shutdown()
        self.server.server_close()
