"""A TCP relay before a server: the network between a training and its server, which a fault can make slow."""

import asyncio
import contextlib
import threading
from types import TracebackType
from urllib.parse import urlsplit

CHUNK_BYTES = 2**18
CHUNK_SECONDS = 0.25
"""A slow network takes as long for each chunk, each way: a quarter of a second of delay, and at most 1 MiB/s."""


class Link:
    """Relays connections to a server, as fast as it can until `slow_down`.

    Args:
        uri: URL of the server.
    """

    def __init__(self, uri: str) -> None:
        self._server = urlsplit(uri)
        self._slow = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self.carried = 0
        """Bytes that went over it while it was slow, to the server and back."""

    def __enter__(self) -> "Link":
        self._thread.start()
        listening = asyncio.start_server(self._relay, "127.0.0.1", 0)
        self._listening = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.uri = f"http://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._listening.close()
        relays = asyncio.all_tasks() - {asyncio.current_task()}
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)

    def slow_down(self) -> None:
        self._slow = True

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind, before = await asyncio.open_connection(self._server.hostname, self._server.port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._carry(reader, before), self._carry(behind, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # one end is gone: the other is told
            while chunk := await reader.read(CHUNK_BYTES):
                if self._slow:
                    await asyncio.sleep(CHUNK_SECONDS)
                    self.carried += len(chunk)
                writer.write(chunk)
                await writer.drain()
        writer.close()
