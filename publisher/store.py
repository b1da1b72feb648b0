"""The publisher's folder: what was signed, what orders were given, and the bytes of releases.

    {store}/blobs/                       content of every kept release, by sha256
    {store}/models/{release}/            the model folders of kept releases, with their canaries
    {store}/rollout-secret.json          the key that signs rollout orders; mode 0600
    {store}/{channel}/channel.json       `ChannelState`
    {store}/{channel}/{version}-{key}.manifest
    {store}/sent/{broker}.log            see `sent`

In and out: plain values. Every change is one durable rename under a lock, so that a process killed
at any instant leaves the folder as it was before or after. Neighbours: `making` signs into it,
`sending` and `watching` act by it.
"""

from __future__ import annotations

import base64
import fcntl
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from protocol.checks import check_name
from protocol.errors import ProtocolError
from protocol.key_files import load_rollout_secret, save_rollout_secret
from protocol.manifest import Manifest, SignedManifest, decode_manifest
from protocol.release_messages import RolloutOrder, SignedRollout
from protocol.signing import SigningKey
from publisher.errors import NoStore, NoSuchVersion, PublisherStoreError, StoreBusy
from reader.weights import folder_digest
from releases.blob_folder import BlobFolder
from releases.errors import ReleaseError
from releases.files import read_json, remove_tree, sync_folder, write_file, write_json

ROLLOUT_KEY_ID = "rollout"
ROLLOUT_KEY_FILE = "rollout-secret.json"
KEPT_ON_DISK = 10
"""Releases of a channel whose content stays here, for a rollback; the broker keeps two."""
FORMAT_VERSION = 1
LOCK_SECONDS = 30.0
LOCK_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Record:
    """A signed release of a channel. `right_answers` of `questions` with a known answer were given
    by it; `is_published`: the channel has shown it; `reached_all`: its last order was for every
    edge, and not paused.
    """

    version: int
    key_id: str
    release: str
    name: str
    manifest_file: str
    is_published: bool = False
    right_answers: int | None = None
    questions: int | None = None
    reached_all: bool = False


@dataclass
class ChannelState:
    """What the store knows of a channel; `change` makes changes last.

    `highest` is the highest version signed by each key; `order` the last rollout order, whose
    number the next one of the same key follows; `excused` the edges whose failure an operator has
    seen and resumed in spite of.
    """

    channel: str
    highest: dict[str, int] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    order: SignedRollout | None = None
    excused: dict[str, str] = field(default_factory=dict)

    @property
    def current(self) -> Record | None:
        """The last record that was published."""
        return next((one for one in reversed(self.records) if one.is_published), None)

    @property
    def pending(self) -> Record | None:
        """A record that was signed after the current one and not published yet."""
        return self.records[-1] if self.records and not self.records[-1].is_published else None

    def record_of(self, version: int) -> Record:
        """The record of a version; the newest, where several keys signed it."""
        for one in reversed(self.records):
            if one.version == version:
                return one
        known = ", ".join(str(one.version) for one in self.records) or "none"
        raise NoSuchVersion(
            f"channel {self.channel} has no version {version} in this store (it has: {known})"
        )

    def opened_order(self, rollout_public: bytes) -> RolloutOrder | None:
        """The last order, if it was signed by that key."""
        if self.order is None:
            return None
        try:
            return self.order.open(rollout_public)
        except ProtocolError:
            return None

    def add(self, record: Record) -> None:
        """Append a record; older unpublished ones are given up."""
        self.records = [one for one in self.records if one.is_published][-4 * KEPT_ON_DISK :]
        self.records.append(record)
        self.highest[record.key_id] = max(record.version, self.highest.get(record.key_id, 0))

    def mark_published(self, record: Record) -> None:
        """Note that the channel shows it now."""
        self._replace(record, replace(record, is_published=True))

    def mark_reach(self, record: Record, reached_all: bool) -> None:
        """Note whether every edge is told to take it."""
        self._replace(record, replace(record, reached_all=reached_all))

    def _replace(self, old: Record, new: Record) -> None:
        self.records = [new if one == old else one for one in self.records]


class PublisherStore:
    """The folder. Several processes may use it; each change is made under a lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for part in ("models", "sent"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            self.blobs = BlobFolder(folder / "blobs")
        except (OSError, ReleaseError) as error:
            raise PublisherStoreError(
                f"store {folder} cannot be made: {error}; name another with --store"
            ) from error

    @classmethod
    def open(cls, folder: Path) -> PublisherStore:
        """A store that is there already. Raises NoStore, PublisherStoreError."""
        if not folder.is_dir():
            raise NoStore(
                f"there is no publisher's store at {folder}; name it with --store or in your "
                "settings file (`elma publish` makes one)"
            )
        return cls(folder)

    # -- channels --------------------------------------------------------------------------

    def channels(self) -> list[str]:
        """The channels that this store has published to."""
        return sorted(path.parent.name for path in self.folder.glob("*/channel.json"))

    def channel(self, channel: str) -> ChannelState:
        """What is known of a channel now."""
        check_name("channel", channel)
        with _translated():
            document = read_json(self.folder / channel / "channel.json")
        return _decode_state(channel, document) if document else ChannelState(channel)

    @contextmanager
    def change(self, channel: str) -> Iterator[ChannelState]:
        """The channel's state, stored when the block ends without an error."""
        with self._locked("lock", LOCK_SECONDS):
            state = self.channel(channel)
            yield state
            path = self.folder / channel / "channel.json"
            with _translated():
                path.parent.mkdir(exist_ok=True)
                write_json(path, _encode_state(state))

    @contextmanager
    def publishing(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Only one publish at a time from this store. Raises StoreBusy after `wait_seconds`."""
        with self._locked("publishing.lock", wait_seconds):
            yield

    # -- manifests -------------------------------------------------------------------------

    def save_manifest(self, manifest: Manifest, signed: SignedManifest) -> str:
        """Keep a signed manifest; its file's name, for a `Record`."""
        name = f"{manifest.version}-{signed.key_id}.manifest"
        with _translated():
            (self.folder / manifest.channel).mkdir(exist_ok=True)
            write_file(self.folder / manifest.channel / name, signed.encode())
        return name

    def signed(self, channel: str, record: Record) -> SignedManifest:
        """The signed manifest of a record."""
        path = self.folder / channel / record.manifest_file
        try:
            return SignedManifest.decode(path.read_bytes())
        except (OSError, ProtocolError) as error:
            raise PublisherStoreError(
                f"{path}, the manifest of version {record.version}, cannot be read: {error}"
            ) from error

    def manifest(self, channel: str, record: Record) -> Manifest:
        """The manifest of a record; the store's own files are trusted."""
        return decode_manifest(self.signed(channel, record).payload)

    # -- model folders ---------------------------------------------------------------------

    def model_folder(self, release: str) -> Path | None:
        """The model folder of a release, if it is kept here."""
        path = self.folder / "models" / release
        return path if path.is_dir() else None

    def keep_model(self, manifest: Manifest, source: Path, canaries: bytes) -> Path:
        """Copy the files of a release from its model folder; the copy's path.

        Raises PublisherStoreError when the model changed meanwhile.
        """
        target = self.folder / "models" / manifest.release
        partial = target.with_name(f"{manifest.release}.partial")
        remove_tree(partial)
        with _translated():
            partial.mkdir()
            for file in manifest.files:
                if file.name == "canaries.json":
                    write_file(partial / file.name, canaries)
                else:
                    shutil.copyfile(source / file.name, partial / file.name)
            if folder_digest(partial) != manifest.release:
                remove_tree(partial)
                raise PublisherStoreError(f"{source} changed while it was published; try again")
            remove_tree(target)
            partial.rename(target)
            sync_folder(target.parent)
        return target

    # -- the rollout key -------------------------------------------------------------------

    def rollout_key(self) -> SigningKey:
        """The key that signs this store's rollout orders; made the first time.

        Raises `protocol.errors.KeyFileError`.
        """
        path = self.folder / ROLLOUT_KEY_FILE
        with self._locked("lock", LOCK_SECONDS):
            if not path.is_file():
                save_rollout_secret(path, SigningKey.make(ROLLOUT_KEY_ID))
            return load_rollout_secret(path)

    def rotate_rollout_key(self) -> SigningKey:
        """A new key for rollout orders in the place of one that may be known to others.

        It counts from the next manifest on, which names it. Raises `protocol.errors.KeyFileError`.
        """
        key = SigningKey.make(ROLLOUT_KEY_ID)
        with self._locked("lock", LOCK_SECONDS):
            save_rollout_secret(self.folder / ROLLOUT_KEY_FILE, key, replace=True)
        return key

    def sent_log(self, address: str) -> Path:
        """Where it is noted what a broker has acknowledged."""
        return self.folder / "sent" / (re.sub(r"[^A-Za-z0-9.-]", "_", address) + ".log")

    @contextmanager
    def _locked(self, name: str, wait_seconds: float) -> Iterator[None]:
        end = time.monotonic() + wait_seconds
        with (self.folder / name).open("a") as stream:
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() >= end:
                        raise StoreBusy(
                            f"another publish, or the rollout service, is at work in {self.folder};"
                            " try again when it has ended"
                        ) from error
                    time.sleep(LOCK_POLL_SECONDS)
            yield


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, ReleaseError) as error:
        raise PublisherStoreError(f"the publisher's store: {error}") from error


def _encode_state(state: ChannelState) -> dict[str, Any]:
    order = None if state.order is None else state.order.encode()
    return {
        "format": FORMAT_VERSION,
        "highest": state.highest,
        "records": [asdict(one) for one in state.records],
        "order": None if order is None else base64.b64encode(order).decode("ascii"),
        "excused": state.excused,
    }


def _decode_state(channel: str, document: dict[str, Any]) -> ChannelState:
    try:
        if document["format"] != FORMAT_VERSION:
            raise ValueError(f"format {document['format']}")
        order = document["order"]
        return ChannelState(
            channel,
            {str(key): int(version) for key, version in document["highest"].items()},
            [Record(**one) for one in document["records"]],
            None if order is None else SignedRollout.decode(base64.b64decode(order)),
            dict(document["excused"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError, ProtocolError) as error:
        raise PublisherStoreError(
            f"channel.json of {channel} in the publisher's store is broken ({error!r}); restore it"
        ) from error
