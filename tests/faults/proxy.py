"""A TCP proxy in front of the object store that can misbehave as stores do: answer 503 always or now and then, cut uploads in the
middle, or be away."""

import asyncio
import random
import threading

PASS, UNAVAILABLE, SOMETIMES, CUT = "pass", "unavailable", "sometimes", "cut"
_REFUSED = 0.05  # share of requests that "sometimes" refuses
_METHODS = (b"GET ", b"HEAD ", b"PUT ", b"POST ")
_503 = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CUT_AFTER = 3000  # bytes of a connection: in the middle of a checkpoint's files


class Proxy:
    """Forwards to a port of this host; counts what it refused and cut."""

    def __init__(self, target: int) -> None:
        self.target, self.mode, self.num_faults = target, PASS, 0
        self._chance = random.Random(0)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            answer.close()
            return
        back = asyncio.create_task(self._copy(reader, answer))
        seen = 0
        try:
            while block := await client.read(1024):
                seen += len(block)
                is_upload = seen > _CUT_AFTER
                is_refused = self.mode == UNAVAILABLE or (
                    self.mode == SOMETIMES
                    and block.startswith(_METHODS)
                    and self._chance.random() < _REFUSED
                )
                if is_refused or (self.mode == CUT and is_upload):
                    self.num_faults += 1
                    answer.write(_503 if is_refused else b"")
                    break
                writer.write(block)
                await writer.drain()
        except OSError:
            pass
        finally:
            for stream in (writer, answer) if self.mode != PASS else (writer,):
                stream.close()
            await asyncio.gather(back, return_exceptions=True)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while block := await reader.read(65536):
                writer.write(block)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
