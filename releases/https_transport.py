"""Chunks as byte ranges of `{url}/{sha256}`, from a content network or any static web server.

In: the manifest's addresses. Out: arrivals; `fetching` verifies them like all others. The server is
trusted with nothing: https only (plain http on loopback addresses alone), every read bounded in
bytes and time, redirects followed a few times and never to another scheme. Neighbour: `follower`
goes back to MQTT when this way fails.
"""

from __future__ import annotations

import ipaddress
import queue
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx

from protocol.manifest import CHUNK_BYTES
from releases.errors import TransportFailed
from releases.transport import Arrival, WantedChunk

MAX_REDIRECTS = 3
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
CHUNK_SECONDS = 300.0
"""For a whole chunk: some 900 bytes a second."""
QUEUE_BOUND = 64
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class HttpsTransport:
    """Fetches chunks over HTTPS, `window` at once. `ca_file`: authorities beside the system's."""

    generation = 0
    is_ready = True

    def __init__(
        self,
        urls: Sequence[str],
        *,
        window: int = 4,
        ca_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises TransportFailed where no address may be used, or the authorities' file is bad."""
        self._urls = [url.rstrip("/") for url in urls if is_allowed(httpx_url(url))]
        if not self._urls:
            raise TransportFailed("none of the manifest's addresses is https; MQTT is left")
        self._clock = clock
        self._arrivals: queue.Queue[Arrival] = queue.Queue(QUEUE_BOUND)
        self._client = httpx.Client(
            verify=_tls_context(ca_file),
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            follow_redirects=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "elma"},
        )
        self._pool = ThreadPoolExecutor(window, thread_name_prefix="elma-https")
        self._closing = False

    def ask(self, wanted: WantedChunk) -> bool:
        """Begin to download the chunk's range."""
        self._pool.submit(self._bring, wanted)
        return True

    def arrived(self, timeout_seconds: float) -> Arrival | None:
        """The next thing that came."""
        try:
            return self._arrivals.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def forget(self, wanted: WantedChunk) -> None:
        """What is under way ends by itself."""

    def close(self) -> None:
        """End everything that is under way, without waiting for it.

        The sockets are closed only when no thread reads any more: OpenSSL would go on with the
        number of a closed socket, which may by then be that of another file of ours.
        """
        self._closing = True
        threading.Thread(target=self._close, name="elma-https-close", daemon=True).start()

    def _close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _bring(self, wanted: WantedChunk) -> None:
        """On a thread of the pool: try one address after the other."""
        arrival = Arrival(wanted.key, problem="no address")
        for url in self._urls:
            if self._closing:
                return
            try:
                arrival = Arrival(wanted.key, self._get(f"{url}/{wanted.blob.sha256}", wanted))
                break
            except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError) as error:
                words = str(error) or type(error).__name__
                arrival = Arrival(wanted.key, problem=f"{_host(url)}: {words}")
        with suppress(queue.Full):
            self._arrivals.put_nowait(arrival)

    def _get(self, url: str, wanted: WantedChunk) -> bytes:
        """The chunk's bytes; raises httpx.HTTPError for anything else."""
        first = wanted.chunk * CHUNK_BYTES
        last = first + wanted.length_bytes - 1
        target = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            with self._client.stream(
                "GET", target, headers={"Range": f"bytes={first}-{last}"}
            ) as response:
                if response.status_code in _REDIRECTS:
                    target = _redirected(target, response)
                    continue
                _check_range(response, first, last, wanted)
                return self._read(response, wanted.length_bytes)
        raise httpx.TooManyRedirects(f"more than {MAX_REDIRECTS} redirects")

    def _read(self, response: httpx.Response, length_bytes: int) -> bytes:
        """Exactly so many bytes; stops reading at the first one too many."""
        until = self._clock() + CHUNK_SECONDS
        content = bytearray()
        for piece in response.iter_raw():
            content += piece
            if len(content) > length_bytes:
                raise httpx.DecodingError("more bytes than the range has")
            if self._clock() > until or self._closing:
                raise httpx.ReadTimeout(f"not done within {CHUNK_SECONDS:g} s")
        if len(content) != length_bytes:
            raise httpx.ReadError(f"{len(content)} of {length_bytes} bytes came")
        return bytes(content)


def httpx_url(text: str) -> httpx.URL:
    """The address, or an empty one where `text` is none."""
    try:
        return httpx.URL(text)
    except (httpx.InvalidURL, TypeError, ValueError):
        return httpx.URL("")


def is_allowed(url: httpx.URL) -> bool:
    """https, or http to this machine itself."""
    if url.scheme == "https":
        return bool(url.host)
    return url.scheme == "http" and _is_loopback(url.host)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _redirected(origin: httpx.URL, response: httpx.Response) -> httpx.URL:
    """Where a redirect leads, if it may be followed."""
    try:
        target = origin.join(response.headers.get("location", ""))
    except httpx.InvalidURL as error:
        raise httpx.UnsupportedProtocol("a redirect to no address") from error
    if target.scheme != origin.scheme or not is_allowed(target):
        raise httpx.UnsupportedProtocol(
            f"a redirect from {origin.scheme} to {target.scheme}, which is not followed"
        )
    return target


def _check_range(response: httpx.Response, first: int, last: int, wanted: WantedChunk) -> None:
    """206 with this range, or 200 where the chunk is the whole blob."""
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        expected = f"bytes {first}-{last}/{wanted.blob.length_bytes}"
        found = response.headers.get("content-range", "")
        if found not in (expected, f"bytes {first}-{last}/*"):
            raise httpx.DecodingError(f"asked for {expected}, was sent another range")
    elif response.status_code != httpx.codes.OK or wanted.blob.chunk_count > 1:
        raise httpx.HTTPStatusError(
            f"status {response.status_code} where 206 was expected",
            request=response.request,
            response=response,
        )


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise TransportFailed(
                f"https_ca_file {ca_file} holds no certificate in PEM form"
            ) from error
    return context


def _host(url: str) -> str:
    return httpx_url(url).host
