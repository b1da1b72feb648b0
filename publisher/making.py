"""Manifests: of a new model, of old content under a new version, with a new expiry; and signatures.

In: the store, and a checked model folder. Out: an unsigned `Manifest` whose blobs lie in the store;
then, with a key or with a signature from another machine, a `Record` in the store. Neighbours:
`checking` comes before, `sending` after; `releases.building` makes the blobs.

    draft_release | draft_rollback | draft_refresh -> sign_manifest -> keep_signed
                                                   -> prepare ... `elma sign` ... keep_signed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from protocol.blobs import BlobRef
from protocol.errors import ProtocolError
from protocol.file_index import FileIndex, decode_index
from protocol.manifest import (
    Manifest,
    PreviousRelease,
    SignedManifest,
)
from protocol.signing import PublisherTrust
from publisher.checking import Checked
from publisher.errors import NoSuchVersion, PublisherStoreError, SigningError
from publisher.fleet import Fleet
from publisher.store import ChannelState, PublisherStore, Record
from reader.weights import SHIPPED_MODELS, folder_digest, load_config, shipped_model_folder
from releases.architecture import architecture_of
from releases.blob_folder import blob_reference
from releases.building import build_contents
from releases.errors import ReleaseError

MAX_USED_BASES = 4
"""Of what edges run; each one more makes building slower and indexes larger."""
LEAST_STEP_SECONDS = 0.001


@dataclass(frozen=True)
class Wanted:
    """What the operator says about a release. `key_id`: who will sign; `expires_seconds`: how long
    the manifest is good for; `now` is unix seconds. `urls` None: those of the content's last
    manifest, none for a new model."""

    channel: str
    key_id: str
    expires_seconds: float
    now: float
    note: str = ""
    urls: tuple[str, ...] | None = None
    f1: float | None = None


def draft_release(
    store: PublisherStore,
    wanted: Wanted,
    folder: Path,
    checked: Checked,
    bases: Sequence[Path],
    fleet: Fleet,
    trust: PublisherTrust,
) -> Manifest:
    """The manifest of a model folder, unsigned; its blobs and a copy of the folder are kept.

    `bases` are model folders that edges may have, for differences. Raises PublisherStoreError.
    """
    state = store.channel(wanted.channel)
    version, created = _next(state, wanted, fleet, trust)
    canaries = checked.canaries_file
    try:
        contents = build_contents(
            folder, canaries, blobs=store.blobs, bases=bases, earlier=_indexes(store, state)
        )
    except ReleaseError as error:
        raise PublisherStoreError(f"{folder} cannot be made into a release: {error}") from error
    release = folder_digest(folder)
    manifest = Manifest(
        channel=wanted.channel,
        version=version,
        release=release,
        name=folder.resolve().name[:64],
        created=created,
        expires=created + wanted.expires_seconds,
        architecture=architecture_of(load_config(folder)),
        files=contents.files,
        rollout_public=store.rollout_key().public,
        previous=_previous(store, state, release),
        urls=wanted.urls or (),
        f1=wanted.f1,
        note=wanted.note,
    )
    store.keep_model(manifest, folder, canaries)
    return manifest


def draft_rollback(
    store: PublisherStore, wanted: Wanted, version: int, fleet: Fleet, trust: PublisherTrust
) -> Manifest:
    """The content of an old version under a new one. Raises PublisherStoreError without it."""
    state = store.channel(wanted.channel)
    old = store.manifest(wanted.channel, state.record_of(version))
    number, created = _next(state, wanted, fleet, trust)
    return replace(
        old,
        version=number,
        created=created,
        expires=created + wanted.expires_seconds,
        rollout_public=store.rollout_key().public,
        previous=_previous(store, state, old.release),
        urls=old.urls if wanted.urls is None else wanted.urls,
        note=wanted.note or f"back to the content of version {version}",
    )


def draft_refresh(
    store: PublisherStore, wanted: Wanted, fleet: Fleet, trust: PublisherTrust
) -> Manifest:
    """The current release under a new version that expires later. Raises NoSuchVersion where there
    is none."""
    state = store.channel(wanted.channel)
    if state.current is None:
        raise NoSuchVersion(f"channel {wanted.channel} has no release to refresh in this store")
    current = store.manifest(wanted.channel, state.current)
    version, created = _next(state, wanted, fleet, trust)
    return replace(
        current,
        version=version,
        created=created,
        expires=created + wanted.expires_seconds,
        rollout_public=store.rollout_key().public,
        urls=current.urls if wanted.urls is None else wanted.urls,
        note=wanted.note or current.note,
    )


def keep_signed(
    store: PublisherStore,
    signed: SignedManifest,
    trust: PublisherTrust,
    checked: Checked | None = None,
) -> Record:
    """Verify a signed manifest as a device would, and make it the channel's pending release.

    Raises SigningError for a key that may not sign, a wrong signature, a version that was used
    before, or blobs that are not here.
    """
    try:
        manifest = signed.manifest(trust.keys())
    except ProtocolError as error:
        raise SigningError(f"no device would take this manifest: {error}") from error
    missing = [
        blob.sha256 for blob in blobs_of(store, manifest) if not store.blobs.has(blob.sha256)
    ]
    if missing:
        raise SigningError(
            f"blob {missing[0]} of this manifest is not in the store {store.folder}; "
            "prepare and publish with the same --store"
        )
    with store.change(manifest.channel) as state:
        for one in state.records:
            is_numbered_so = (one.version, one.key_id) == (manifest.version, signed.key_id)
            if is_numbered_so and store.signed(manifest.channel, one).payload == signed.payload:
                return one
        if manifest.version <= state.highest.get(signed.key_id, 0):
            raise SigningError(
                f"version {manifest.version} of key {signed.key_id} was used before in channel "
                f"{manifest.channel}; prepare the release again"
            )
        record = Record(
            version=manifest.version,
            key_id=signed.key_id,
            release=manifest.release,
            name=manifest.name,
            manifest_file=store.save_manifest(manifest, signed),
            right_answers=checked.right_answers if checked else None,
            questions=checked.questions if checked else None,
        )
        state.add(record)
        return record


def choose_bases(
    store: PublisherStore, channel: str, folder: Path, fleet: Fleet, now: float
) -> list[Path]:
    """The model folders against which differences are made, the most used first.

    What living edges say that they run, the channel's current release, and the shipped models; as
    far as they are at hand and their tensors could be alike.
    """
    shipped = [path for name in SHIPPED_MODELS if (path := shipped_model_folder(name)).is_dir()]
    at_hand = {folder_digest(path): path for path in shipped}
    releases = [release for release, _ in fleet.releases_in_use(now).most_common(MAX_USED_BASES)]
    current = store.channel(channel).current
    if current is not None:
        releases.append(current.release)
    own, config = folder_digest(folder), load_config(folder)
    found: list[Path] = []
    for release in dict.fromkeys([*releases, *at_hand]):
        base = store.model_folder(release) or at_hand.get(release)
        if base is None or release == own:
            continue
        other = load_config(base)
        if (other.hidden_size, other.vocab_size) == (config.hidden_size, config.vocab_size):
            found.append(base)
    return found


def manifest_blob(store: PublisherStore, signed: SignedManifest) -> BlobRef:
    """A signed manifest as a blob, kept in the store: what the next release calls its previous."""
    content = signed.encode()
    store.blobs.put(content)
    return blob_reference(content)


def blobs_of(store: PublisherStore, manifest: Manifest) -> list[BlobRef]:
    """Every blob that a device may ask for to have this release, indexes included.

    Raises PublisherStoreError when an index is not in the store.
    """
    blobs = [file.source for file in manifest.files]
    for file in manifest.files:
        if file.index is not None:
            blobs.extend(_index(store, file.name, file.index).blobs)
    if manifest.previous is not None:
        blobs.append(manifest.previous.manifest)
    return list(dict.fromkeys(blobs))


def _next(
    state: ChannelState, wanted: Wanted, fleet: Fleet, trust: PublisherTrust
) -> tuple[int, float]:
    """The version after every one that this store, or this key elsewhere, has signed; and a time
    after every manifest's.

    Devices count by key; one row of numbers over all keys is for people, and for rollbacks.
    """
    highest, latest = max(state.highest.values(), default=0), 0.0
    if fleet.manifest is not None:
        try:
            seen = fleet.manifest.manifest(trust.keys())
        except ProtocolError:  # forged, or of a revoked key: it counts for nobody
            seen = None
        if seen is not None and seen.channel == wanted.channel:
            latest = seen.created
            if fleet.manifest.key_id == wanted.key_id:
                highest = max(highest, seen.version)
    return highest + 1, max(wanted.now, latest + LEAST_STEP_SECONDS)


def _previous(store: PublisherStore, state: ChannelState, release: str) -> PreviousRelease | None:
    """What a fresh device begins with that is outside the new release's share: the last one that
    every edge was told to take, so none that stopped at a stage; without one, the current one.

    Where the current release is this very content, what came before it.
    """
    if state.current is None:
        return None
    if state.current.release == release:
        return store.manifest(state.channel, state.current).previous
    published = [one for one in state.records if one.is_published and one.release != release]
    whole = [one for one in published if one.reached_all]
    chosen = whole[-1] if whole else state.current
    blob = manifest_blob(store, store.signed(state.channel, chosen))
    return PreviousRelease(chosen.release, chosen.version, blob)


def _indexes(store: PublisherStore, state: ChannelState) -> list[FileIndex]:
    """The indexes of the current release, whose blobs the broker has."""
    if state.current is None:
        return []
    manifest = store.manifest(state.channel, state.current)
    return [
        _index(store, file.name, file.index) for file in manifest.files if file.index is not None
    ]


def _index(store: PublisherStore, name: str, index: BlobRef) -> FileIndex:
    try:
        return decode_index(store.blobs.read_range(index.sha256, 0, index.length_bytes))
    except (OSError, ReleaseError, ProtocolError) as error:
        raise PublisherStoreError(
            f"the index of {name} is not in the store {store.folder}: {error}"
        ) from error
