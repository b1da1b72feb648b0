"""Every failure of the `releases` package, drawn once.

    ReleaseError
    ├── ReleaseRejected               this release is wrong; only another manifest can be right
    │   ├── ForgedManifest            a signature that no trusted key made
    │   ├── MalformedRelease          signed, and yet bytes that make no sense
    │   ├── RevokedKey                signed by a key that the root has revoked or does not name
    │   ├── WrongChannel              made for another channel
    │   ├── ExpiredManifest           past its `expires`
    │   ├── Rollback                  older than what was used, or the same version changed
    │   ├── UnsupportedArchitecture   no reader of ours, or not the one that the manifest names
    │   ├── TooLarge                  more bytes than a device takes
    │   ├── DigestMismatch            the files do not make the release that was signed
    │   ├── CanariesFailed            it does not answer as its publisher saw it answer
    │   ├── CannotLoad                its files are complete and no reader comes of them
    │   └── CrashLoop                 who took it died of it, again and again
    ├── ContentError                  parts, deltas or packed bytes that do not fit together
    ├── NotEnoughSpace                the disk is full, or would be
    ├── FetchFailed                   bytes did not come; they may come later
    │   ├── ChunkMissing              the broker has no such chunk (any more)
    │   ├── ChunkCorrupt              what came again and again was not the chunk
    │   └── TransportFailed           this way does not work; another may
    ├── NotProved                     this machine could not prove it now
    │   ├── ProofTimedOut             its canaries took too long: a busy machine, or it hangs
    │   └── ProofStarved              no memory for it: a full machine, or one too small
    ├── FetchInterrupted              stopped on purpose: shutdown, or something newer came
    └── StoreError                    the store's files cannot be read or written

`reason_code` is a word for metrics and reports; the message is for people.
"""

from __future__ import annotations

from typing import ClassVar


class ReleaseError(Exception):
    """Base of everything that `releases` raises on purpose."""

    reason_code: ClassVar[str] = "failed"


class ReleaseRejected(ReleaseError):
    """This manifest will not be taken, whatever happens; a newer one may be."""

    reason_code = "rejected"


class ForgedManifest(ReleaseRejected):
    """The signature of a manifest, or of its key list, was made by nobody whom we trust."""

    reason_code = "forged"


class MalformedRelease(ReleaseRejected):
    """A manifest or an index that does not decode, or contradicts itself."""

    reason_code = "malformed"


class RevokedKey(ReleaseRejected):
    """The signing key was revoked by the root key, or was never named by it."""

    reason_code = "revoked_key"


class WrongChannel(ReleaseRejected):
    """The manifest belongs to another channel than it was found in."""

    reason_code = "wrong_channel"


class ExpiredManifest(ReleaseRejected):
    """The manifest's time is over; whoever shows it may be hiding a newer one."""

    reason_code = "expired"


class Rollback(ReleaseRejected):
    """The manifest is older than one that was used, or the same version with other bytes."""

    reason_code = "rollback"


class UnsupportedArchitecture(ReleaseRejected):
    """The network is none that we can run, or not the one that the manifest declares."""

    reason_code = "architecture"


class TooLarge(ReleaseRejected):
    """The release has more bytes than the settings allow."""

    reason_code = "too_large"


class DigestMismatch(ReleaseRejected):
    """The assembled files do not have the digest that was signed."""

    reason_code = "digest"


class CanariesFailed(ReleaseRejected):
    """The release does not answer its own canary questions on this machine."""

    reason_code = "canaries"


class CannotLoad(ReleaseRejected):
    """No reader comes of the complete files: they are wrong, or this machine is too small."""

    reason_code = "cannot_load"


class CrashLoop(ReleaseRejected):
    """The process died with this release more often than is allowed."""

    reason_code = "crash_loop"


class ContentError(ReleaseError):
    """Parts, deltas or packed bytes that do not fit together."""

    reason_code = "content"


class NotEnoughSpace(ReleaseError):
    """The disk is full, or would be; tried again when there may be space."""

    reason_code = "no_space"


class FetchFailed(ReleaseError):
    """Bytes did not come; tried again later."""

    reason_code = "fetch"


class ChunkMissing(FetchFailed):
    """The broker does not have a chunk; the publisher's service brings it back."""

    reason_code = "chunk_missing"


class ChunkCorrupt(FetchFailed):
    """What came for a chunk did not have its hash, several times; the publisher's service sends it
    again."""

    reason_code = "chunk_corrupt"


class TransportFailed(FetchFailed):
    """A transport does not work at all for now; another one may."""

    reason_code = "transport"


class NotProved(ReleaseError):
    """Nothing was learnt of the release; tried again, and given up after as many times as deaths
    are."""

    reason_code = "not_proved"


class ProofTimedOut(NotProved):
    """No answer in time."""

    reason_code = "timed_out"


class ProofStarved(NotProved):
    """The system gave no process or no memory for it, or took it away again."""

    reason_code = "no_memory"


class FetchInterrupted(ReleaseError):
    """The fetch was stopped on purpose; what came is kept."""

    reason_code = "interrupted"


class StoreError(ReleaseError):
    """The store's files cannot be read or written, or another process holds it."""

    reason_code = "store"
