"""From a reading to a sealed request: which codec, within which bytes.

In: readings that the device could not settle. Out: `PackedRequest`s, of the release that made the
reading. Neighbours: `codec_choice` decides, `local_reading` packs, `cloud_messages` seals;
`offload` asks, on the inference thread when a reading comes in, on its own when a worker lacked a
codec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from broker.tracing import Span
from edge_agent.cloud_messages import RequestSealer, SealedRequest
from edge_agent.codec_choice import CodecChoice, LinkEstimate, Offer
from edge_agent.errors import SettingsError
from edge_agent.local_reading import LocalReading, Reading
from edge_agent.settings import OffloadSettings

SEALING_BYTES, WINDOW_BYTES = 1_024, 128
"""What a sealed request has beside its states, at most: once, and for each window."""


@dataclass(frozen=True)
class PackedRequest:
    """A sealed request, and the codec that it is packed in."""

    sealed: SealedRequest
    codec: str


def check_codec(local: LocalReading, settings: OffloadSettings) -> None:
    """Raises `SettingsError` when a release does not have the codec that the settings name."""
    if settings.codec not in ("auto", *local.reader.codecs.names(local.edge_layers)):
        raise SettingsError(
            f"offload.codec: {local.reader.name} has no {settings.codec} after layer "
            f"{local.edge_layers}; use auto, or train one (elma compress bottleneck)"
        )


class Packer:
    """Packs and seals for one device; remembers how the link did and what workers lack.

    `packet_bytes` gives the broker's limit of now.
    """

    def __init__(
        self, sealer: RequestSealer, settings: OffloadSettings, packet_bytes: Callable[[], int]
    ) -> None:
        self._sealer, self._settings = sealer, settings
        self._packet_bytes = packet_bytes
        self._choice = CodecChoice()

    @property
    def link(self) -> LinkEstimate:
        """How fast requests have been arriving."""
        return self._choice.link

    def least_bytes(self, reading: Reading) -> int | None:
        """The fewest bytes that its states can take; None when even these are too many."""
        least = min(offer.payload_bytes for offer in self._offers(reading))
        return least if least <= self._limit_bytes(reading) else None

    def pack(
        self, reading: Reading, seconds_left: float, span: Span | None = None
    ) -> PackedRequest | None:
        """Pack and seal, to arrive within `seconds_left` if that can be; None for too many bytes.

        `span` is what the worker's own hang below. Raises `ProtocolError`, `StateError`.
        """
        offer = self._pick(reading, seconds_left)
        return None if offer is None else self._seal(reading, offer, span)

    def pack_anew(
        self, reading: Reading, lacking: str, seconds_left: float, span: Span | None = None
    ) -> PackedRequest | None:
        """The same in another codec, after a worker lacked one; None where there is no other."""
        self._choice.worker_lacks(lacking)
        offer = self._pick(reading, seconds_left)
        if offer is None or offer.codec == lacking:
            return None
        return self._seal(reading, offer, span)

    def ask_again(self) -> None:
        """A new connection: there may be workers that know every codec."""
        self._choice.ask_again()

    def _seal(self, reading: Reading, offer: Offer, span: Span | None) -> PackedRequest:
        body = reading.local.request(reading, offer.codec)
        if span is not None:
            body = replace(body, trace_parent=span.trace_parent)
        release = reading.local.reader.digest
        return PackedRequest(self._sealer.seal(reading.question, body, release), offer.codec)

    def _pick(self, reading: Reading, seconds_left: float) -> Offer | None:
        return self._choice.pick(
            self._offers(reading),
            limit_bytes=self._limit_bytes(reading),
            seconds_left=seconds_left,
        )

    def _offers(self, reading: Reading) -> list[Offer]:
        may_send_tokens = self._settings.privacy == "allow-tokens"
        return reading.local.offers(reading, self._settings.codec, may_send_tokens=may_send_tokens)

    def _limit_bytes(self, reading: Reading) -> int:
        """What the states of a reading may take, by our own bound and the broker's."""
        whole = min(self._settings.max_request_bytes, self._packet_bytes())
        return whole - SEALING_BYTES - WINDOW_BYTES * len(reading.unresolved)
