"""Where the broker is, and how to speak with it: one validated model, plus the files it names.

Edge and worker nest `BrokerSettings` in their own configuration as `[broker]`. Input: TOML or
environment values. Output: settings, and from them a password and a TLS context. A wrong value
is pydantic's error when the settings are made; a wrong file is a `BrokerSettingsError` when the
session starts, naming the file and the next step.
"""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from broker.certificate_expiry import certificate_expiry
from broker.errors import BrokerSettingsError
from protocol.credentials import excess_access
from protocol.wire import MAX_MESSAGE_BYTES

PACKET_OVERHEAD_BYTES = 64 * 1024
"""Topic and properties of the largest packet, generously."""
MAX_PACKET_BYTES = MAX_MESSAGE_BYTES + PACKET_OVERHEAD_BYTES
MAX_PASSWORD_BYTES = 1024


class BrokerSettings(BaseModel):
    """One broker, as one client sees it.

    `maximum_packet_bytes` bounds what is received, and what is sent where the broker names no
    smaller bound itself. `max_in_flight` bounds unacknowledged publications; the broker's own
    Receive Maximum may lower it further. TLS is on when `tls_ca_file` is set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1, max_length=255)
    port: int = Field(default=1883, ge=1, le=65535)
    username: str | None = Field(default=None, min_length=1, max_length=64)
    password_file: Path | None = None
    tls_ca_file: Path | None = None
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    keepalive_seconds: int = Field(default=30, ge=1, le=3600)
    connect_timeout_seconds: float = Field(default=5.0, gt=0, le=60)
    reconnect_min_seconds: float = Field(default=0.5, gt=0, le=60)
    reconnect_max_seconds: float = Field(default=30.0, gt=0, le=600)
    maximum_packet_bytes: int = Field(default=MAX_PACKET_BYTES, ge=1024, le=MAX_PACKET_BYTES)
    max_in_flight: int = Field(default=10, ge=1, le=10)

    @model_validator(mode="after")
    def _belong_together(self) -> BrokerSettings:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file need each other")
        if self.tls_certificate_file is not None and self.tls_ca_file is None:
            raise ValueError("tls_certificate_file needs tls_ca_file, which turns TLS on")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs username")
        if self.reconnect_min_seconds > self.reconnect_max_seconds:
            raise ValueError("reconnect_min_seconds must not exceed reconnect_max_seconds")
        return self

    @property
    def address(self) -> str:
        """`host:port`, for messages and logs."""
        return f"{self.host}:{self.port}"

    def certificate_expires(self) -> float:
        """When our certificate, as it lies there now, expires, in unix seconds; 0 without one."""
        if self.tls_certificate_file is None:
            return 0.0
        try:
            return certificate_expiry(self.tls_certificate_file)
        except (OSError, ValueError):
            return 0.0  # what is wrong with it, the connection says

    def password(self) -> str | None:
        """The password in `password_file`, without its line end; None where there is no file."""
        path = self.password_file
        if path is None:
            return None
        try:
            _must_be_private("password_file", path)
            content = path.read_bytes()
        except OSError as error:
            raise BrokerSettingsError(f"password_file {path}: {error.strerror}") from error
        if len(content) > MAX_PASSWORD_BYTES:
            raise BrokerSettingsError(f"password_file {path} holds over {MAX_PASSWORD_BYTES} bytes")
        try:
            return content.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise BrokerSettingsError(f"password_file {path} is not UTF-8") from error

    def tls_context(self) -> ssl.SSLContext | None:
        """A context that verifies the broker, and shows our certificate if there is one."""
        if self.tls_ca_file is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _must_exist("tls_ca_file", self.tls_ca_file)
        try:
            context.load_verify_locations(cafile=self.tls_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise BrokerSettingsError(
                f"tls_ca_file {self.tls_ca_file} holds no certificate in PEM form"
            ) from error
        if self.tls_certificate_file is not None and self.tls_key_file is not None:
            _must_exist("tls_certificate_file", self.tls_certificate_file)
            _must_exist("tls_key_file", self.tls_key_file)
            _must_be_private("tls_key_file", self.tls_key_file)
            try:
                # An empty password makes an encrypted key fail here instead of asking a terminal.
                context.load_cert_chain(self.tls_certificate_file, self.tls_key_file, lambda: b"")
            except (OSError, ssl.SSLError, ValueError) as error:
                raise BrokerSettingsError(
                    f"tls_certificate_file {self.tls_certificate_file} and tls_key_file "
                    f"{self.tls_key_file} are not a certificate and its unencrypted key"
                ) from error
        return context


def _must_exist(setting: str, path: Path) -> None:
    """Name the setting whose file cannot be read."""
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise BrokerSettingsError(f"{setting} {path}: {error.strerror}") from error


def _must_be_private(setting: str, path: Path) -> None:
    """Refuse a secret file that others may read. Raises OSError for one that is not there."""
    if excess_access(path, stat.S_IMODE(path.stat().st_mode)):
        raise BrokerSettingsError(f"{setting} {path} is open to other users; run: chmod 600 {path}")
