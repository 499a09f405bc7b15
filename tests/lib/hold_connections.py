"""Many TCP connections at once, in whatever network namespace this runs in.

    connections.py serve ADDRESS:PORT
    connections.py hold ADDRESS:PORT COUNT

`serve` sends back what it gets, for ever. `hold` opens COUNT connections and says
`open`; then, for each line on its input, it sends something over every one of
them, waits for the echo, and says `alive N`, with N connections that answered.
"""

from __future__ import annotations

import asyncio
import resource
import sys

# At a time, while they are being opened: a server's backlog has an end.
_AT_ONCE = 200
# For one echo, over a machine under load.
_PATIENCE = 60


async def _serve(host: str, port: int) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(64):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_server(echo, host, port, backlog=4096)
    print("serving", flush=True)
    await server.serve_forever()


async def _hold(host: str, port: int, count: int) -> None:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with gate:
            return await asyncio.wait_for(asyncio.open_connection(host, port), _PATIENCE)

    streams = await asyncio.gather(*(connect() for _ in range(count)))
    print("open", flush=True)
    loop = asyncio.get_running_loop()
    number = 0
    while await loop.run_in_executor(None, sys.stdin.readline):
        number += 1
        sent = f"{number:08d}".encode()

        async def ask(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes = sent
        ) -> bool:
            try:
                writer.write(sent)
                async with asyncio.timeout(_PATIENCE):
                    return await reader.readexactly(len(sent)) == sent
            except (OSError, EOFError, TimeoutError):
                return False

        alive = await asyncio.gather(*(ask(*stream) for stream in streams))
        print(f"alive {sum(alive)}", flush=True)


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    what, where, *rest = sys.argv[1:]
    host, _, port = where.rpartition(":")
    if what == "serve":
        asyncio.run(_serve(host, int(port)))
    else:
        asyncio.run(_hold(host, int(port), int(rest[0])))


if __name__ == "__main__":
    main()
