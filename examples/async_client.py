"""A client with many requests under way: each worker has one kept session, and 20 requests of it wait at the same time.

The server is in this program, speaks HTTP/1.1 and answers each request after 50 ms, as a language model's would after
seconds. What the client does is written for asyncio; order, errors, retries and the bar are those of any worker.

    python examples/async_client.py [--requests 4000] [--compare]
"""

import argparse
import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from joblib_stateful import StatefulExecutor, stateful_map

N_WORKERS, N_AT_ONCE = 2, 20
ANSWER_SECONDS = 0.05


class Client:
    """A session with a server: connections that are kept, one for each request under way."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.n_connections = 0

    async def __call__(self, text: str) -> dict[str, Any]:
        if self.idle:
            reader, writer = self.idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.n_connections += 1
        body = text.encode()
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        head = await reader.readuntil(b"\r\n\r\n")
        answer: dict[str, Any] = json.loads(await reader.readexactly(length_in(head)))
        self.idle.append((reader, writer))
        return {**answer, "connections": self.n_connections}

    async def close(self) -> None:
        for _, writer in self.idle:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in self.idle))


def length_in(head: bytes) -> int:
    lines = head.decode().lower().splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request after the other of a connection."""
    try:
        while True:
            text = await reader.readexactly(length_in(await reader.readuntil(b"\r\n\r\n")))
            await asyncio.sleep(ANSWER_SECONDS)
            body = json.dumps({"summary": text.decode().upper()}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):  # the client has gone
        writer.close()


@contextmanager
def server() -> Iterator[int]:
    """Have a server answer in a thread; gives its port."""
    begun: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        started, is_over = await asyncio.start_server(answer, "127.0.0.1", 0), asyncio.Event()
        begun.set_result((started.sockets[0].getsockname()[1], asyncio.get_running_loop(), is_over))
        await is_over.wait()
        started.close()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    port, loop, is_over = begun.result()
    yield port
    loop.call_soon_threadsafe(is_over.set)
    thread.join()


async def ask_all(port: int, texts: list[str]) -> list[dict[str, Any]]:
    """Do the same by asyncio alone, in one process: as many requests under way as all workers have."""
    client, todo = Client(port), iter(enumerate(texts))
    found: dict[int, dict[str, Any]] = {}

    async def ask() -> None:
        for index, text in todo:
            found[index] = await client(text)

    await asyncio.gather(*(ask() for _ in range(N_WORKERS * N_AT_ONCE)))
    await client.close()
    return [found[index] for index in range(len(texts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--compare", action="store_true", help="do the same by asyncio alone, and tell both rates")
    options = parser.parse_args()
    texts = [f"text {number}" for number in range(options.requests)]
    with server() as port:
        with StatefulExecutor(Client, N_WORKERS, max_concurrency=N_AT_ONCE, shared_kwargs={"port": port}) as clients:
            clients.warm_up()
            started = time.perf_counter()
            found = list(stateful_map(clients, texts, progress=True))
            rate = len(found) / (time.perf_counter() - started)
        most = max(answer["connections"] for answer in found)
        print(
            f"{len(found)} answers, the last one {found[-1]['summary']!r}; {most} connections at most for each worker"
        )
        if options.compare:
            started = time.perf_counter()
            again = asyncio.run(ask_all(port, texts))
            alone = len(again) / (time.perf_counter() - started)
            most_possible = N_WORKERS * N_AT_ONCE / ANSWER_SECONDS
            print(
                f"asyncio alone: {alone:.0f} a second; {rate / alone:.2f} of that, {rate / most_possible:.2f} of the most"
            )


if __name__ == "__main__":
    main()
