"""The TLS files of one client as they lie there now: a renewed certificate needs no restart.

Inputs: the settings, which name the files. Outputs: a context for each new connection, and whether
there is a newer one than the present connection's. Neighbours: `settings` reads the files, `keeper`
connects. Files that cannot be used, as while only one of a pair has been replaced, leave what was
read before; a log line says why. Not thread-safe: for the thread that connects.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

from broker.errors import BrokerSettingsError
from broker.log import SafeLog
from broker.settings import BrokerSettings

_log = SafeLog("elma.broker")
_Stamp = tuple[int, int, int, int]


class TlsFiles:
    """`load` first, which raises BrokerSettingsError for unusable files; the rest never raises."""

    def __init__(self, settings: BrokerSettings, client_id: str) -> None:
        self._settings, self._client_id = settings, client_id
        self._paths = [
            path
            for path in (
                settings.tls_ca_file,
                settings.tls_certificate_file,
                settings.tls_key_file,
            )
            if path is not None
        ]
        self._context: ssl.SSLContext | None = None
        self._stamps: list[_Stamp | None] = []
        self._certificates: list[bytes] = []
        self._is_newer = False

    def load(self) -> None:
        """Read the files for the first time."""
        self._stamps = [_stamp_of(path) for path in self._paths]
        self._context = self._settings.tls_context()
        self._certificates = self._read_certificates()

    def context(self) -> ssl.SSLContext | None:
        """What a connection that is made now shows and trusts; None for one without TLS."""
        self._look()
        self._is_newer = False
        return self._context

    def have_changed(self) -> bool:
        """Whether there are other certificates, and usable ones, than `context` gave last."""
        self._look()
        return self._is_newer

    def _look(self) -> None:
        # Noted before the files are read: one that changes meanwhile is read once more.
        stamps = [_stamp_of(path) for path in self._paths]
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            context, certificates = self._settings.tls_context(), self._read_certificates()
        except (BrokerSettingsError, OSError) as error:
            _log.warning("broker_tls_files_not_read", client=self._client_id, why=str(error))
            return
        # A file that was only touched, or written as it was, is no reason to connect anew.
        if certificates != self._certificates:
            self._is_newer = True
            _log.info(
                "broker_tls_files_read",
                client=self._client_id,
                certificate_expires=self._settings.certificate_expires(),
            )
        self._context, self._certificates = context, certificates

    def _read_certificates(self) -> list[bytes]:
        """The public ones; a key without a certificate of its own says nothing."""
        keys = {self._settings.tls_key_file}
        return [path.read_bytes() for path in self._paths if path not in keys]


def _stamp_of(path: Path) -> _Stamp | None:
    """What changes with a file; None when it cannot be looked at."""
    with suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode
    return None
