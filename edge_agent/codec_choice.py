"""Which codec a request goes out in: numbers in, a name out.

In: what each codec would send and lose (`Offer`), and what the link has done so far
(`LinkEstimate`). Out: one offer. Neighbours: `local_reading` makes the offers, `offload` measures
the link and remembers which codecs the workers lack. No clock and no network in here.

The rule: of the offers that the size limit lets through, those that arrive in time; of these the
one with the lowest price, where a price is seconds until the worker can begin, plus
`SECONDS_A_POINT` for every point of F1 that the codec loses. When nothing arrives in time, the
quickest. Where a link is fast, exact states cost nothing; where it is thin, small ones win.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SECONDS_A_POINT = 0.5
"""What a user would wait for one more right answer in a hundred of the offloaded ones."""

FIRST_BYTES_PER_SECOND = 250_000.0
FIRST_ROUND_TRIP_SECONDS = 0.1
FORGETTING = 0.9


@dataclass(frozen=True)
class Offer:
    """One way to send a request.

    `payload_bytes` of all its windows, `f1_loss` in points over offloaded questions, and
    `extra_seconds` of the worker that this way costs beyond the others (token ids: the device's
    layers once more).
    """

    codec: str
    payload_bytes: int
    f1_loss: float
    extra_seconds: float = 0.0


class LinkEstimate:
    """A line through what was seen: seconds = round trip + bytes / speed.

    Least squares, in which each observation counts `FORGETTING` times as much as the next one. It
    begins with two imagined ones, so that it has an opinion at once and keeps a sane one while all
    requests are of one size.
    """

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # of weight, bytes, seconds, bytes squared, bytes * seconds
        for size in (1_000.0, 100_000.0):
            self.note(size, FIRST_ROUND_TRIP_SECONDS + size / FIRST_BYTES_PER_SECOND)

    def note(self, payload_bytes: float, seconds: float) -> None:
        """A request of so many bytes was in a worker's hands, and its word here, after `seconds`.

        Also for what had not arrived by then: the estimate becomes at least that pessimistic.
        """
        new = (1.0, payload_bytes, seconds, payload_bytes**2, payload_bytes * seconds)
        self._sums = [FORGETTING * old + added for old, added in zip(self._sums, new, strict=True)]

    def seconds(self, payload_bytes: float) -> float:
        """How long a request of so many bytes will take."""
        weight, size, time, squares, products = self._sums
        spread = weight * squares - size * size
        slope = 0.0 if spread <= 0 else (weight * products - size * time) / spread
        start = (time - slope * size) / weight
        if slope < 0 or start < 0:  # one cause explains it all
            slope, start = (0.0, time / weight) if slope < 0 else (time / size, 0.0)
        return start + slope * payload_bytes


def choose(
    offers: Iterable[Offer], link: LinkEstimate, *, limit_bytes: int, seconds_left: float
) -> Offer | None:
    """The offer to take; None when every one is over `limit_bytes`.

    `seconds_left` is when the worker must have the request at the latest.
    """
    fitting = [offer for offer in offers if offer.payload_bytes <= limit_bytes]

    def delay(offer: Offer) -> float:
        return link.seconds(offer.payload_bytes) + offer.extra_seconds

    timely = [offer for offer in fitting if delay(offer) <= seconds_left]
    if timely:
        return min(
            timely,
            key=lambda offer: (
                delay(offer) + SECONDS_A_POINT * offer.f1_loss,
                offer.payload_bytes,
            ),
        )
    return min(fitting, key=delay, default=None)


class CodecChoice:
    """`choose` with a memory: how the link did, and which codecs a worker said it lacks."""

    def __init__(self) -> None:
        self.link = LinkEstimate()
        self._lacking: set[str] = set()

    def pick(
        self, offers: Iterable[Offer], *, limit_bytes: int, seconds_left: float
    ) -> Offer | None:
        """What to send; a codec that a worker lacks is not taken while there is another."""
        offers = list(offers)
        known = [offer for offer in offers if offer.codec not in self._lacking] or offers
        return choose(known, self.link, limit_bytes=limit_bytes, seconds_left=seconds_left)

    def worker_lacks(self, codec: str) -> None:
        """A worker does not know this codec."""
        self._lacking.add(codec)

    def ask_again(self) -> None:
        """A new connection: there may be other workers now."""
        self._lacking.clear()
