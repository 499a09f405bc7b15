#!/usr/bin/python3
"""Serves files over HTTP; answers other paths with the client's address.

    web.py --listen ADDRESS:PORT --log FILE.jsonl [--files PATH=DIR]...

A request for a path below PATH gets the file of DIR or 404. The longest PATH counts.
Each request is a line of JSON in the log:

    time     seconds since the epoch
    client   address
    path     as requested
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def serve(address: str, port: int, log: Path, files: Mapping[str, Path]) -> None:
    """Answers until the process ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            client = self.client_address[0]
            entry = {"time": time.time(), "client": client, "path": self.path}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            for prefix in sorted(files, key=len, reverse=True):
                if self.path.startswith(prefix):
                    self.send_file(files[prefix], self.path.removeprefix(prefix))
                    return
            body = f"{client}\n".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, root: Path, name: str) -> None:
            file = (root / name).resolve()
            if not file.is_file() or not file.is_relative_to(root.resolve()):
                self.send_error(404)
                return
            with file.open("rb") as content:
                self.send_response(200)
                self.send_header("Content-Length", str(file.stat().st_size))
                self.end_headers()
                shutil.copyfileobj(content, self.wfile, 1 << 20)

    server = ThreadingHTTPServer((address, port), Handler)
    print(f"web: listening on {address}:{port}", flush=True)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves files over HTTP.")
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--log", required=True, type=Path, metavar="FILE")
    parser.add_argument("--files", action="append", default=[], metavar="PATH=DIR")
    arguments = parser.parse_args()
    address, _, port = arguments.listen.rpartition(":")
    pairs = (text.partition("=") for text in arguments.files)
    files = {path: Path(directory) for path, _, directory in pairs}
    serve(address, int(port), arguments.log, files)


if __name__ == "__main__":
    main()
