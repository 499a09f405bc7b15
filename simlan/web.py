#!/usr/bin/python3
"""A web server that tells each client the address it came from, and has the source
of a small program at /hello.c and the files of a directory below /netboot/.

    web.py --listen ADDRESS:PORT --log FILE.jsonl [--publish DIR]

Every request is also one line of JSON: `time` (seconds since the epoch),
`client` (address), `path`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NETBOOT = "/netboot/"

HELLO = """\
#include <stdio.h>

int main(void)
{
    puts("hello from a build machine");
    return 0;
}
"""


def serve(address: str, port: int, log: Path, published: Path | None) -> None:
    """Answers until the process ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            client = self.client_address[0]
            entry = {"time": time.time(), "client": client, "path": self.path}
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            if published and self.path.startswith(NETBOOT):
                self.send_file(published, self.path.removeprefix(NETBOOT))
                return
            body = (HELLO if self.path == "/hello.c" else f"{client}\n").encode()
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

    ThreadingHTTPServer((address, port), Handler).serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="tells each client the address it came from")
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--log", required=True, type=Path, metavar="FILE")
    parser.add_argument("--publish", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    address, _, port = arguments.listen.rpartition(":")
    serve(address, int(port), arguments.log, arguments.publish)


if __name__ == "__main__":
    main()
