"""Serves or holds many TCP connections, in the network namespace where it runs.

    hold_connections.py serve ADDRESS:PORT
    hold_connections.py hold ADDRESS:PORT COUNT

`serve` echoes until it is killed. `hold` opens COUNT connections and prints `open`. For
each line on its standard input it sends a message over each connection, waits for the
echoes and prints `alive N`: N connections answered.
"""

from __future__ import annotations

import asyncio
import resource
import sys

# Connections opened at a time: the server's backlog is limited.
_AT_ONCE = 200
# Seconds for an echo, on a machine under load.
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
    command, endpoint, *rest = sys.argv[1:]
    host, _, port = endpoint.rpartition(":")
    if command == "serve":
        asyncio.run(_serve(host, int(port)))
    else:
        asyncio.run(_hold(host, int(port), int(rest[0])))


if __name__ == "__main__":
    main()
