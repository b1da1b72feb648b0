"""The manifest: compact, bounded, and refused when anything in it contradicts itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.blobs import CHUNK_BYTES, MAX_BLOB_BYTES, BlobRef, blob_from_wire, blob_to_wire
from protocol.errors import (
    BadSignature,
    MalformedMessage,
    OversizedMessage,
    UnexpectedKind,
    UnknownKeyId,
)
from protocol.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_RELEASE_BYTES,
    RELEASE_FILES,
    Manifest,
    ReleaseFile,
    SignedManifest,
    decode_manifest,
    encode_manifest,
    sign_manifest,
)
from protocol.signing import KeyList, SigningKey
from protocol.wire import MAX_LIST_ITEMS, Kind, decode_frame, encode_frame
from reader.weights import DIGESTED_FILES
from tests.protocol.release_samples import FIXED_KEY, NOW, blob, files, manifest, sha

ROOT = SigningKey.make("root")
KEYS = KeyList(1, {FIXED_KEY.key_id: FIXED_KEY.public})
ROOT_SIGNED = KEYS.sign(ROOT)
_HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def blobs(draw: st.DrawFn, chunks: int = 40) -> BlobRef:
    """Any blob of up to `chunks` chunks."""
    length_bytes = draw(st.integers(1, chunks * CHUNK_BYTES))
    count = BlobRef.count_chunks(length_bytes)
    hashes = draw(st.lists(_HASHES, min_size=count, max_size=count)) if count > 1 else []
    return BlobRef(draw(_HASHES), length_bytes, tuple(hashes))


@st.composite
def release_files(draw: st.DrawFn) -> tuple[ReleaseFile, ...]:
    """Any files that may stand together in a release."""
    made = []
    for name in draw(st.lists(st.sampled_from(RELEASE_FILES), unique=True, min_size=1)):
        source, way = draw(blobs(4)), draw(st.sampled_from(["whole", "zstd", "index"]))
        if way == "whole":
            made.append(ReleaseFile(name, source.length_bytes, source.sha256, blob=source))
        elif way == "zstd":
            length = draw(st.integers(1, 10**8))
            made.append(ReleaseFile(name, length, draw(_HASHES), "zstd", source))
        else:
            length = draw(st.integers(1, 10**8))
            made.append(ReleaseFile(name, length, draw(_HASHES), index=source))
    return tuple(made)


@given(blobs())
def test_a_blobs_chunks_add_up_to_it(one: BlobRef) -> None:
    lengths = [one.chunk_length(chunk) for chunk in range(one.chunk_count)]
    assert sum(lengths) == one.length_bytes
    assert set(lengths[:-1]) <= {CHUNK_BYTES}
    hashes = [one.chunk_sha256(chunk) for chunk in range(one.chunk_count)]
    assert hashes == list(one.chunk_hashes or (one.sha256,))
    assert blob_from_wire("blob", blob_to_wire(one)) == one


@pytest.mark.parametrize("chunk", [-1, 2, 10**9, True])
def test_a_chunk_that_a_blob_has_not_is_refused(chunk: int) -> None:
    one = blob("b", CHUNK_BYTES + 1)
    assert one.chunk_length(1) == 1
    with pytest.raises(MalformedMessage):
        one.chunk_sha256(chunk)
    with pytest.raises(MalformedMessage):
        one.chunk_length(chunk)


@pytest.mark.parametrize(
    "values",
    [
        ("x" * 64, 1, ()),
        (sha("b").upper(), 1, ()),
        (sha("b"), 0, ()),
        (sha("b"), -5, ()),
        (sha("b"), MAX_BLOB_BYTES + 1, ()),
        (sha("b"), 1, (sha("c"),)),
        (sha("b"), CHUNK_BYTES, (sha("c"),)),
        (sha("b"), CHUNK_BYTES + 1, ()),
        (sha("b"), CHUNK_BYTES + 1, (sha("c"),)),
        (sha("b"), CHUNK_BYTES + 1, (sha("c"), sha("d"), sha("e"))),
        (sha("b"), CHUNK_BYTES + 1, (sha("c"), "d")),
    ],
)
def test_a_blob_whose_chunks_do_not_fit_its_length_is_refused(values: tuple[Any, ...]) -> None:
    with pytest.raises(MalformedMessage):
        BlobRef(*values)


def test_an_endless_list_of_chunks_is_refused() -> None:
    endless = [bytes(32), MAX_BLOB_BYTES, [bytes(32)] * 1_000_000]
    with pytest.raises(MalformedMessage, match="list of"):
        blob_from_wire("blob", endless)
    with pytest.raises(MalformedMessage, match="chunk hashes"):
        blob_from_wire("blob", [bytes(32), 10, [bytes(32)] * 1000])


@given(
    release_files(),
    st.integers(1, 2**53 - 1),
    st.floats(0, 1e9),
    st.floats(1e9, 1e12),
    st.none() | st.floats(0, 100),
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=60),
    st.booleans(),
)
def test_every_manifest_survives_its_bytes(
    some_files: tuple[ReleaseFile, ...],
    version: int,
    created: float,
    expires: float,
    f1: float | None,
    note: str,
    has_previous: bool,
) -> None:
    made = manifest(
        files=some_files, version=version, created=created, expires=expires, f1=f1, note=note
    )
    made = made if has_previous else replace(made, previous=None, urls=())
    assert decode_manifest(encode_manifest(made)) == made
    signed = sign_manifest(made, FIXED_KEY, ROOT_SIGNED)
    again = SignedManifest.decode(signed.encode())
    assert again == signed
    assert again.manifest(again.key_list.open(ROOT.public)) == made


def test_the_shipped_models_manifest_costs_less_than_three_kilobytes() -> None:
    """So that an update of thresholds stays below eight with everything around it."""
    signed = sign_manifest(manifest(), FIXED_KEY, ROOT_SIGNED)
    assert len(manifest().files) == 8
    assert len(signed.encode()) < 2_000


def test_the_files_of_a_release_are_those_of_a_model_folder() -> None:
    """`protocol` may not import `reader`, so the names stand in both."""
    assert set(RELEASE_FILES) == {*DIGESTED_FILES, "codecs.json", "canaries.json"}


def test_a_changed_byte_is_noticed_before_the_manifest_is_read() -> None:
    signed = sign_manifest(manifest(), FIXED_KEY, ROOT_SIGNED)
    for position in range(0, len(signed.payload), 37):
        payload = bytearray(signed.payload)
        payload[position] ^= 1
        with pytest.raises(BadSignature):
            replace(signed, payload=bytes(payload)).manifest(KEYS)


def test_a_manifest_of_a_key_that_is_not_listed_is_refused() -> None:
    stranger = SigningKey.make("stranger")
    with pytest.raises(UnknownKeyId):
        sign_manifest(manifest(), stranger, ROOT_SIGNED).manifest(KEYS)
    same_name = SigningKey.make(FIXED_KEY.key_id)
    with pytest.raises(BadSignature):
        sign_manifest(manifest(), same_name, ROOT_SIGNED).manifest(KEYS)


@pytest.mark.parametrize(
    "changes",
    [
        {"channel": "a/b"},
        {"version": 0},
        {"version": 2**53},
        {"version": 1.0},
        {"release": "ab"},
        {"name": "x" * 65},
        {"created": float("nan")},
        {"expires": NOW - 1},
        {"rollout_public": bytes(31)},
        {"files": ()},
        {"files": (*files(), files()[0])},
        {"urls": ("https://example.org/",) * 9},
        {"urls": ("x" * 513,)},
        {"urls": ("https://example.org/\n",)},
        {"f1": 100.5},
        {"f1": float("inf")},
        {"note": "x" * 501},
        {"note": "two\nlines"},
    ],
)
def test_a_manifest_out_of_bounds_is_not_made(changes: dict[str, Any]) -> None:
    assert manifest().total_bytes > 34_000_000
    with pytest.raises(MalformedMessage):
        manifest(**changes)


def test_a_release_too_large_for_anybody_is_not_made() -> None:
    half = MAX_RELEASE_BYTES // 2 + 1
    large = [ReleaseFile(name, half, sha(name), index=blob(name, 10)) for name in RELEASE_FILES[:2]]
    with pytest.raises(MalformedMessage, match="release bytes"):
        manifest(files=tuple(large))


@pytest.mark.parametrize(
    "values",
    [
        {"name": "../config.json"},
        {"name": "/etc/passwd"},
        {"name": "CONFIG.JSON"},
        {"name": "pytorch_model.bin"},
        {"name": ""},
        {"name": None},
        {"length_bytes": 0},
        {"length_bytes": MAX_RELEASE_BYTES + 1},
        {"sha256": "ab"},
        {"compression": "gzip"},
        {"compression": "none"},
        {"blob": None},
        {"index": blob("i", 5)},
        {"blob": None, "index": blob("i", 5)},  # its compression is the parts' business
    ],
)
def test_a_file_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    good = ReleaseFile("config.json", 900, sha("config"), "zstd", blob("c", 400))
    with pytest.raises(MalformedMessage):
        replace(good, **values)


def test_a_file_of_more_chunks_than_a_manifest_lists_needs_an_index() -> None:
    at_most = blob("b", MAX_LIST_ITEMS * CHUNK_BYTES)
    ReleaseFile("config.json", 5, sha("c"), "zstd", at_most)
    with pytest.raises(MalformedMessage, match="index"):
        ReleaseFile("config.json", 5, sha("c"), "zstd", blob("b", MAX_LIST_ITEMS * CHUNK_BYTES + 1))


def test_a_manifest_of_a_later_program_is_understood() -> None:
    fields = decode_frame(encode_manifest(manifest()), {Kind.MANIFEST_BODY}).fields
    fields["colour"] = {"new": [1, 2]}
    fields["files"][0]["mode"] = 7
    fields["architecture"]["experts"] = 3
    assert decode_manifest(encode_frame(Kind.MANIFEST_BODY, fields)) == manifest()


@pytest.mark.parametrize("name", [*Manifest.__dataclass_fields__])
def test_a_field_that_is_missing_is_named(name: str) -> None:
    fields = decode_frame(encode_manifest(manifest()), {Kind.MANIFEST_BODY}).fields
    del fields[name]
    payload = encode_frame(Kind.MANIFEST_BODY, fields)
    optional = {"previous": None, "urls": (), "f1": None, "note": ""}
    if name in optional:
        assert decode_manifest(payload) == manifest(**{name: optional[name]})
        return
    with pytest.raises(MalformedMessage, match=name):
        decode_manifest(payload)


def test_sizes_are_checked_before_anything_is_decoded() -> None:
    with pytest.raises(OversizedMessage):
        decode_manifest(bytes(MAX_MANIFEST_BYTES + 1))
    with pytest.raises(OversizedMessage):
        SignedManifest.decode(bytes(MAX_MANIFEST_BYTES + 100_000))


def test_a_manifest_that_nobody_would_take_is_not_made() -> None:
    wide = 1000 * CHUNK_BYTES
    many = tuple(
        ReleaseFile(name, 5, sha(name), "zstd", blob(name, wide)) for name in RELEASE_FILES
    )
    with pytest.raises(OversizedMessage):
        encode_manifest(manifest(files=many))


def test_other_frames_are_no_manifest() -> None:
    with pytest.raises(UnexpectedKind):
        SignedManifest.decode(encode_manifest(manifest()))
    with pytest.raises(UnexpectedKind):
        decode_manifest(sign_manifest(manifest(), FIXED_KEY, ROOT_SIGNED).encode())


@pytest.mark.parametrize(("payload", "keys"), [(-1, 1), (0, 0), (1, 10), (10, 10), (5, 4)])
def test_lengths_that_do_not_fill_the_attachment_are_refused(payload: int, keys: int) -> None:
    fields = {
        "key_id": "k",
        "signature": bytes(64),
        "keys_signature": bytes(64),
        "payload": payload,
        "keys": keys,
    }
    SignedManifest.decode(
        encode_frame(Kind.MANIFEST, {**fields, "payload": 4, "keys": 6}, b"x" * 10)
    )
    with pytest.raises(MalformedMessage):
        SignedManifest.decode(encode_frame(Kind.MANIFEST, fields, b"x" * 10))
