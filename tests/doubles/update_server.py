#!/usr/bin/python3
"""Serves a tree of channels over HTTP, with ranges and conditional requests.

    update_server.py --listen ADDRESS:PORT --log FILE.jsonl --tree DIR

Each request is a line of JSON in the log: `path`, `status`, `from` (the first byte), `bytes`
(sent), and `headers` (bytes of both headers).
A file `DIR/desk/truncate` makes the server break off each object after half of what was asked, or
after the part between 0 and 1 that the file has as text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def serve(address: str, port: int, log: Path, tree: Path) -> None:
    """Answers until the process ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            file = (tree / self.path.lstrip("/")).resolve()
            served = [tree / "channel", tree / "objects"]
            if file.parent not in [directory.resolve() for directory in served]:
                self.send_error(404)
                return
            if not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            if self.headers.get("If-None-Match") == etag:
                self.send_response(304)
                self.send_header("ETag", etag)
                self._end(304, 0, 0)
                return
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(match[1]) if match else 0
            if match and first >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if match else 200)
            if match:
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            rest = content[first:]
            self.send_header("Content-Length", str(len(rest)))
            self.send_header("ETag", etag)
            status = 206 if match else 200
            if file.parent.name == "objects" and (tree / "desk/truncate").exists():
                part = (tree / "desk/truncate").read_text()
                rest = rest[: int(len(rest) * float(part or 0.5))]
                self.close_connection = True
            self._end(status, first, len(rest))
            try:
                self.wfile.write(rest)
            except ConnectionError:
                pass

        def _end(self, status: int, first: int, sent: int) -> None:
            """Logs the request, and ends the headers of the answer."""
            answer = b"".join(self._headers_buffer) + b"\r\n"
            size = len(self.raw_requestline) + len(str(self.headers)) + len(answer)
            entry = {"path": self.path, "status": status, "from": first, "bytes": sent}
            # Before the answer: a client that has it finds the entry.
            with log.open("a") as out:
                out.write(json.dumps({**entry, "headers": size}) + "\n")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((address, port), Handler)
    print(f"update_server: listening on {address}:{port}", flush=True)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves a tree of channels over HTTP.")
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--log", required=True, type=Path, metavar="FILE")
    parser.add_argument("--tree", required=True, type=Path, metavar="DIR")
    arguments = parser.parse_args()
    address, _, port = arguments.listen.rpartition(":")
    serve(address, int(port), arguments.log, arguments.tree)


if __name__ == "__main__":
    main()
