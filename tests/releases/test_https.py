"""The second transport, against a real HTTPS server with a certificate made for the test."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker.session import Session
from releases.chunk_folder import ChunkFolder
from releases.errors import ChunkCorrupt, TransportFailed
from releases.fetching import ChunkFetcher, FetchRules
from releases.https_transport import HttpsTransport
from releases.pacing import Pacer
from releases.transport import WantedChunk
from tests.conftest import find_program
from tests.releases.conftest import Follows
from tests.releases.plant import Plant, announce, upload, wait_until

Follow = Callable[..., Follows]


@dataclass
class Server:
    """A web server over a folder of blobs. `change` may tamper with (status, headers, body)."""

    folder: Path
    port: int = 0
    ranges: list[str] = field(default_factory=list)
    change: Callable[[int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]] | None = None

    def answer(self, path: str, asked: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a request."""
        file = self.folder / path.strip("/").split("/")[-1]
        if not file.is_file():
            return 404, {}, b"no"
        content = file.read_bytes()
        self.ranges.append(asked or "")
        if asked is None:
            return 200, {}, content
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return 206, headers, content[first : last + 1]


def handler_of(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = server.answer(self.path, self.headers.get("Range"))
            if server.change is not None:
                status, headers, body = server.change(status, headers, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself, beside its key."""
    program = find_program("openssl", package="openssl")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    subprocess.run(
        [
            *(program, "req", "-x509", *curve, "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "keyUsage=digitalSignature"),
            *("-keyout", "web.key", "-out", "web.pem"),
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    return tmp_path / "web.pem"


def serve(server: Server, certificate: Path | None) -> Iterator[Server]:
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        web.socket = context.wrap_socket(web.socket, server_side=True)
    server.port = web.server_address[1]
    thread = threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture
def https(plant: Plant, certificate: Path) -> Iterator[Server]:
    """The plant's blobs over HTTPS."""
    yield from serve(Server(plant.blobs.folder), certificate)


@pytest.fixture
def http_server(plant: Plant) -> Iterator[Server]:
    """The plant's blobs over plain HTTP on loopback."""
    yield from serve(Server(plant.blobs.folder), None)


def fetch(plant: Plant, folder: Path, url: str, ca_file: Path | None = None) -> ChunkFolder:
    """Every chunk of the plant from `url`."""
    chunks = ChunkFolder(folder)
    wanted = [
        WantedChunk(blob, chunk)
        for blob in plant.references.values()
        for chunk in range(blob.chunk_count)
    ]
    transport = HttpsTransport([url], ca_file=ca_file)
    try:
        fetcher = ChunkFetcher(chunks, Pacer(), FetchRules(answer_seconds=5, poll_seconds=0.02))
        fetcher.fetch(wanted, transport)
    finally:
        transport.close()
    return chunks


def test_every_blob_comes_by_ranges_over_https(
    plant: Plant, model: Path, https: Server, certificate: Path, tmp_path: Path
) -> None:
    plant.manifest(model, 1)
    url = f"https://127.0.0.1:{https.port}/blobs/"
    chunks = fetch(plant, tmp_path / "chunks", url, certificate)
    for blob in plant.references.values():
        assert chunks.read(blob) == plant.blobs.path_of(blob.sha256).read_bytes()
    assert len(https.ranges) == sum(blob.chunk_count for blob in plant.references.values())
    assert all(https.ranges)


def test_a_server_without_a_known_certificate_is_not_spoken_to(
    plant: Plant, model: Path, https: Server, tmp_path: Path
) -> None:
    plant.manifest(model, 1)
    with pytest.raises(TransportFailed, match=r"(?i)certificate"):
        fetch(plant, tmp_path / "chunks", f"https://127.0.0.1:{https.port}")
    assert not https.ranges


@pytest.mark.parametrize(
    "url", ["http://example.com/blobs", "ftp://127.0.0.1/x", "file:///etc", "", "127.0.0.1/x"]
)
def test_only_https_is_taken_except_on_loopback(url: str) -> None:
    with pytest.raises(TransportFailed, match="https"):
        HttpsTransport([url])


def test_plain_http_on_loopback_is_taken(
    plant: Plant, model: Path, http_server: Server, tmp_path: Path
) -> None:
    plant.manifest(model, 1)
    fetch(plant, tmp_path / "chunks", f"http://127.0.0.1:{http_server.port}")


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/x", "file:///etc/passwd"])
def test_a_redirect_to_another_scheme_is_not_followed(
    plant: Plant,
    model: Path,
    https: Server,
    http_server: Server,
    certificate: Path,
    tmp_path: Path,
    target: str,
) -> None:
    plant.manifest(model, 1)
    location = target.format(port=http_server.port)
    https.change = lambda *_: (302, {"Location": location}, b"")
    with pytest.raises(TransportFailed, match="redirect"):
        fetch(plant, tmp_path / "chunks", f"https://127.0.0.1:{https.port}", certificate)
    assert not http_server.ranges


def test_redirects_end(
    plant: Plant, model: Path, https: Server, certificate: Path, tmp_path: Path
) -> None:
    plant.manifest(model, 1)
    https.change = lambda *_: (302, {"Location": "/again"}, b"")
    with pytest.raises(TransportFailed, match="redirects"):
        fetch(plant, tmp_path / "chunks", f"https://127.0.0.1:{https.port}", certificate)


@pytest.mark.parametrize(
    "change",
    [
        lambda status, headers, body: (status, headers, body + b"more"),
        lambda status, headers, body: (status, headers, body[:-1]),
        lambda *answer: (200, {}, answer[2] * 3),
        lambda *answer: (206, {"Content-Range": "bytes 5-9/10"}, answer[2]),
        lambda *_: (500, {}, b"broken"),
    ],
    ids=["longer", "shorter", "no-range", "other-range", "broken"],
)
def test_a_server_that_answers_wrongly_is_given_up(
    plant: Plant, model: Path, https: Server, certificate: Path, tmp_path: Path, change: Any
) -> None:
    plant.manifest(model, 1)
    https.change = change
    with pytest.raises(TransportFailed):
        fetch(plant, tmp_path / "chunks", f"https://127.0.0.1:{https.port}", certificate)
    assert not list((tmp_path / "chunks").rglob("*"))


def test_changed_bytes_from_a_server_are_not_kept(
    plant: Plant, model: Path, https: Server, certificate: Path, tmp_path: Path
) -> None:
    plant.manifest(model, 1)
    https.change = lambda status, headers, body: (status, headers, bytes(len(body)))
    with pytest.raises(ChunkCorrupt, match="other bytes than were signed"):
        fetch(plant, tmp_path / "chunks", f"https://127.0.0.1:{https.port}", certificate)
    assert not list((tmp_path / "chunks").rglob("*"))


def test_a_device_takes_the_address_of_the_manifest_and_nothing_from_the_broker(
    plant: Plant,
    model: Path,
    publisher: Session,
    follow: Follow,
    https: Server,
    certificate: Path,
) -> None:
    manifest = plant.manifest(model, 1, urls=(f"https://127.0.0.1:{https.port}/blobs",))
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    device = follow(settings={"transport": "https", "https_ca_file": certificate})
    wait_until(lambda: device.state == "active", device.reason)
    assert https.ranges
    assert not device.fetched


def test_a_device_goes_back_to_the_broker_for_what_the_address_does_not_give(
    plant: Plant,
    model: Path,
    publisher: Session,
    follow: Follow,
    https: Server,
    certificate: Path,
) -> None:
    manifest = plant.manifest(model, 1, urls=(f"https://127.0.0.1:{https.port}/blobs",))
    upload(publisher, plant)

    def breaks(status: int, headers: dict[str, str], body: bytes) -> Any:
        return (status, headers, body) if len(https.ranges) <= 4 else (503, {}, b"")

    https.change = breaks
    announce(publisher, plant.sign(manifest), plant.order(manifest))
    device = follow(settings={"https_ca_file": certificate})
    wait_until(lambda: device.state == "active")
    total = sum(blob.chunk_count for blob in plant.references.values())
    assert 0 < len(device.fetched) < total


def test_a_closed_transport_keeps_its_sockets_until_no_thread_reads_them(
    plant: Plant, model: Path, https: Server, certificate: Path
) -> None:
    """OpenSSL reads on from the number of a closed socket, which is soon that of another file."""
    plant.manifest(model, 1)
    entered, leave = threading.Event(), threading.Event()

    def hold(*answer: Any) -> Any:
        entered.set()
        leave.wait(20)
        return answer

    https.change = hold
    transport = HttpsTransport([f"https://127.0.0.1:{https.port}"], ca_file=certificate)
    transport.ask(WantedChunk(next(iter(plant.references.values())), 0))
    assert entered.wait(20)
    transport.close()
    transport.close()
    assert not transport._client.is_closed
    leave.set()
    wait_until(lambda: transport._client.is_closed)
