"""What is said about releases: the order to take one, and what edges and workers report.

    RolloutOrder    publisher -> edges, signed by the key that the release's manifest names
    ModelState      edge -> publisher, retained: what it runs and what it is doing
    WorkerReleases  worker -> publisher, retained: what it holds, and how its answers agree

Reports travel in clear and only inform: nobody decides about trust by them. Neighbours:
`manifest` says what a release is, `topics` where these messages travel.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, cast

from protocol.checks import (
    check_boolean,
    check_bytes,
    check_digest,
    check_float,
    check_integer,
    check_list,
    check_name,
    check_text,
    digest_from_bytes,
    take,
)
from protocol.errors import MalformedMessage, OversizedMessage
from protocol.manifest import MAX_UNIX_SECONDS
from protocol.requests import MAX_LAYERS
from protocol.signing import MAX_VERSION, SIGNATURE_BYTES, SigningKey, verify
from protocol.wire import Kind, decode_frame, encode_frame

MAX_REASON_CHARACTERS = 500
MAX_CODE_CHARACTERS = 32
MAX_ORDER_BYTES = 4096
MAX_STATE_BYTES = 4096
MAX_REPORT_BYTES = 256 * 1024
MAX_REPORTED_RELEASES = 64
MAX_AGREEMENTS = 1024
MAX_COUNT = 2**53 - 1

ModelPhase = Literal["init", "downloading", "verified", "active", "failed"]
MODEL_PHASES: tuple[ModelPhase, ...] = ("init", "downloading", "verified", "active", "failed")
AgreementKind = Literal["offload", "audit"]
AGREEMENT_KINDS: tuple[AgreementKind, ...] = ("offload", "audit")


def edge_fraction(edge: str, release: str) -> float:
    """Where an edge stands in a release's rollout, in [0, 1): it takes part in a share above that.

    The first 53 bits of a sha256 over release and edge, so not the same edges go first each time.
    """
    digest = hashlib.sha256(f"{release}/{edge}".encode()).digest()
    return (int.from_bytes(digest[:7], "big") >> 3) / 2**53


@dataclass(frozen=True)
class RolloutOrder:
    """Which share of the edges (0 to 1) takes a release of a channel now.

    `sequence` never goes back for a release; `created` and `expires` are unix seconds. `paused`:
    nobody begins, whatever the share. `reason` is for people.
    """

    channel: str
    release: str
    version: int
    sequence: int
    share: float
    paused: bool
    reason: str
    created: float
    expires: float

    def __post_init__(self) -> None:
        check_name("channel", self.channel)
        check_digest("release", self.release)
        check_integer("version", self.version, 1, MAX_VERSION)
        check_integer("sequence", self.sequence, 1, MAX_COUNT)
        check_float("share", self.share, 0.0, 1.0)
        check_boolean("paused", self.paused)
        check_text("reason", self.reason, MAX_REASON_CHARACTERS)
        check_float("created", self.created, 0, MAX_UNIX_SECONDS)
        check_float("expires", self.expires, self.created, MAX_UNIX_SECONDS)

    def includes(self, edge: str) -> bool:
        """Whether the order tells this edge to take the release."""
        return not self.paused and edge_fraction(edge, self.release) < self.share

    def sign(self, key: SigningKey) -> SignedRollout:
        """The order, signed by the key whose public half the manifest names."""
        fields = {**vars(self), "release": bytes.fromhex(self.release)}
        payload = encode_frame(Kind.ROLLOUT_BODY, fields)
        return SignedRollout(payload, key.sign("rollout", payload))


@dataclass(frozen=True)
class SignedRollout:
    """A rollout order as it travels: bytes that mean nothing before `open` has verified them."""

    payload: bytes
    signature: bytes

    def __post_init__(self) -> None:
        check_bytes("rollout order", self.payload, 1, MAX_ORDER_BYTES)
        check_bytes("rollout signature", self.signature, SIGNATURE_BYTES, SIGNATURE_BYTES)

    def open(self, rollout_public: bytes) -> RolloutOrder:
        """The order, if that key signed it. Raises BadSignature or MalformedMessage."""
        verify("rollout", self.payload, self.signature, rollout_public)
        names = tuple(RolloutOrder.__dataclass_fields__)
        fields = decode_frame(self.payload, {Kind.ROLLOUT_BODY}).fields
        values = dict(zip(names, take(fields, *names), strict=True))
        values["release"] = digest_from_bytes("release", values["release"])
        return RolloutOrder(**values)

    def encode(self) -> bytes:
        """The bytes for the broker."""
        return encode_frame(Kind.ROLLOUT, {"signature": self.signature}, self.payload)

    @classmethod
    def decode(cls, content: bytes) -> SignedRollout:
        """The signed order in `content`, nothing verified yet. Raises MalformedMessage."""
        _check_size("rollout order", content, 2 * MAX_ORDER_BYTES)
        frame = decode_frame(content, {Kind.ROLLOUT})
        return cls(frame.attachment, take(frame.fields, "signature")[0])


@dataclass(frozen=True)
class ModelState:
    """What an edge answers with (`release`, `version`; None: nothing yet) and what it is doing.

    `target`, `target_version`: the release that it is fetching, has verified, or has failed with,
    and then `reason` says why in words and `reason_code` in one word, for programs. `done_bytes` of
    `total_bytes` are fetched. `updated` and `manifest_expires` (of the release in use) are unix
    seconds.
    """

    state: ModelPhase
    release: str | None
    version: int | None
    target: str | None
    target_version: int | None
    reason: str
    done_bytes: int
    total_bytes: int
    updated: float
    manifest_expires: float | None = None
    reason_code: str = ""

    def __post_init__(self) -> None:
        if self.state not in MODEL_PHASES:
            raise MalformedMessage(f"state must be one of {', '.join(MODEL_PHASES)}")
        for field, digest in (("release", self.release), ("target", self.target)):
            if digest is not None:
                check_digest(field, digest)
        for field, version in (("version", self.version), ("target_version", self.target_version)):
            if version is not None:
                check_integer(field, version, 1, MAX_VERSION)
        check_text("reason", self.reason, MAX_REASON_CHARACTERS)
        check_text("reason_code", self.reason_code, MAX_CODE_CHARACTERS)
        check_integer("done_bytes", self.done_bytes, 0, MAX_COUNT)
        check_integer("total_bytes", self.total_bytes, 0, MAX_COUNT)
        check_float("updated", self.updated, 0, MAX_UNIX_SECONDS)
        if self.manifest_expires is not None:
            check_float("manifest_expires", self.manifest_expires, 0, MAX_UNIX_SECONDS)

    def encode(self) -> bytes:
        """The bytes for the broker."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return encode_frame(Kind.MODEL_STATE, fields)

    @classmethod
    def decode(cls, content: bytes) -> ModelState:
        """The state in `content`. Raises MalformedMessage."""
        _check_size("model state", content, MAX_STATE_BYTES)
        fields = decode_frame(content, {Kind.MODEL_STATE}).fields
        state, reason, done_bytes, total_bytes, updated = take(
            fields, "state", "reason", "done_bytes", "total_bytes", "updated"
        )
        return cls(
            cast(ModelPhase, check_name("state", state)),
            fields.get("release"),
            fields.get("version"),
            fields.get("target"),
            fields.get("target_version"),
            reason,
            done_bytes,
            total_bytes,
            updated,
            fields.get("manifest_expires"),
            fields.get("reason_code", ""),
        )


@dataclass(frozen=True)
class Agreement:
    """Of `total` answers that edges gave at the exit behind `layer`, `agreed` were the worker's.

    `kind`: "offload" for provisional answers of questions that were sent, "audit" for certain ones.
    """

    release: str
    layer: int
    kind: AgreementKind
    agreed: int
    total: int

    def __post_init__(self) -> None:
        check_digest("agreement release", self.release)
        check_integer("agreement layer", self.layer, 0, MAX_LAYERS)
        if self.kind not in AGREEMENT_KINDS:
            raise MalformedMessage(f"agreement kind must be one of {', '.join(AGREEMENT_KINDS)}")
        check_integer("agreement total", self.total, 0, MAX_COUNT)
        check_integer("agreement agreed", self.agreed, 0, self.total)


@dataclass(frozen=True)
class WorkerReleases:
    """What a worker holds: releases loaded, being loaded, and failed with a reason; its counts of
    agreement since it started. `updated` is in unix seconds.
    """

    worker: str
    loaded: tuple[str, ...]
    loading: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    agreement: tuple[Agreement, ...]
    updated: float

    def __post_init__(self) -> None:
        check_name("worker", self.worker)
        for field, releases in (("loaded", self.loaded), ("loading", self.loading)):
            _check_count(field, releases, MAX_REPORTED_RELEASES)
            for release in releases:
                check_digest(field, release)
        _check_count("failed", self.failed, MAX_REPORTED_RELEASES)
        for release, reason in self.failed:
            check_digest("failed", release)
            check_text("reason", reason, MAX_REASON_CHARACTERS)
        _check_count("agreement", self.agreement, MAX_AGREEMENTS)
        check_float("updated", self.updated, 0, MAX_UNIX_SECONDS)

    def encode(self) -> bytes:
        """The bytes for the broker."""
        fields = {
            **vars(self),
            "loaded": list(self.loaded),
            "loading": list(self.loading),
            "failed": [list(pair) for pair in self.failed],
            "agreement": [list(vars(one).values()) for one in self.agreement],
        }
        return encode_frame(Kind.WORKER_RELEASES, fields)

    @classmethod
    def decode(cls, content: bytes) -> WorkerReleases:
        """The report in `content`. Raises MalformedMessage."""
        _check_size("worker's report", content, MAX_REPORT_BYTES)
        fields = decode_frame(content, {Kind.WORKER_RELEASES}).fields
        worker, loaded, loading, failed, agreement, updated = take(
            fields, "worker", "loaded", "loading", "failed", "agreement", "updated"
        )
        return cls(
            worker,
            tuple(check_list("loaded", loaded, MAX_REPORTED_RELEASES)),
            tuple(check_list("loading", loading, MAX_REPORTED_RELEASES)),
            tuple(_pair(one) for one in check_list("failed", failed, MAX_REPORTED_RELEASES)),
            tuple(_agreement(one) for one in check_list("agreement", agreement, MAX_AGREEMENTS)),
            updated,
        )


def _pair(value: object) -> tuple[str, str]:
    release, reason = check_list("a failed release", value, 8, 2)[:2]
    return release, reason


def _agreement(value: object) -> Agreement:
    release, layer, kind, agreed, total = check_list("an agreement", value, 16, 5)[:5]
    return Agreement(release, layer, cast(AgreementKind, check_name("kind", kind)), agreed, total)


def _check_count(field: str, values: tuple[Any, ...], high: int) -> None:
    if len(values) > high:
        raise MalformedMessage(f"{field} must number at most {high}, not {len(values)}")


def _check_size(what: str, content: bytes, limit: int) -> None:
    if len(content) > limit:
        raise OversizedMessage(f"a {what} of {len(content)} bytes; the limit is {limit}")
