"""Who may ask a Triton server, for what, and over what: keys and TLS, on both ends.

Triton checks a header per group of endpoints. The group that changes a server (model repository,
shared memory, trace, log) always wants a key that is made anew for each server and that only
our own tools read; whoever may load a model may run any code. So does inference over HTTP, that
is: it is off. One JSON tensor with a huge shape ends Triton 2.51 (an uncaught std::bad_alloc); the
key is checked before the request is read. gRPC refuses such a shape.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow.errors import ConfigError, ServingError

CONTROL_HEADER = "control-key"
API_HEADER = "api-key"
GRPC_PREFIX = "triton-grpc-protocol-"  # Triton wants it before the header's name, on gRPC only
CONTROL_ENDPOINTS = "model-repository,shared-memory,trace,logging"
API_ENDPOINTS = "metadata,model-config,statistics"
INFERENCE = "inference"
_KEY = re.compile(r"[A-Za-z0-9_-]{16,256}")
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Credentials:
    """What a client shows a server, and how it knows that it is the right one.

    Args:
        control_key: for the endpoints that change a server.
        api_key: for everything else but health.
        tls_ca: PEM file of the certificates to trust; None means no TLS.
        tls_name: the name in the server's certificate, where it is not the one connected to.
    """

    control_key: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    tls_ca: str | None = None
    tls_name: str | None = None

    def headers(self, prefix: str = "") -> dict[str, str]:
        """HTTP headers; with GRPC_PREFIX those of gRPC."""
        keys = {CONTROL_HEADER: self.control_key, API_HEADER: self.api_key}
        return {prefix + name: key for name, key in keys.items() if key is not None}


NOBODY = Credentials()


def connect(url: str, credentials: Credentials = NOBODY) -> Any:
    """A tritonclient.grpc.InferenceServerClient that shows its keys at each call.

    Raises:
        ServingError: the file of trusted certificates cannot be read.
    """
    from tritonclient import grpc

    options: dict[str, Any] = {}
    if credentials.tls_ca is not None:
        if not os.access(credentials.tls_ca, os.R_OK):
            raise ServingError(
                f"the certificates in {credentials.tls_ca} cannot be read",
                next_step="give the PEM file that signed the server's certificate with --tls-ca",
            )
        options = {"ssl": True, "root_certificates": credentials.tls_ca}
        if credentials.tls_name is not None:
            override = ("grpc.ssl_target_name_override", credentials.tls_name)
            # Given arguments replace the client's own; without these, messages end at 4 MB.
            limits = [(f"grpc.max_{way}_message_length", 2**31 - 1) for way in ("send", "receive")]
            options["channel_args"] = [*limits, override]
    client = grpc.InferenceServerClient(url, **options)
    headers = credentials.headers(GRPC_PREFIX)
    if headers:
        client.register_plugin(_shows(headers))
    return client


def _shows(headers: dict[str, str]) -> Any:
    from tritonclient.grpc import InferenceServerClientPlugin

    class ShowKeys(InferenceServerClientPlugin):
        def __call__(self, request: Any) -> None:
            request.headers.update(headers)

    return ShowKeys()


# --- the server's end ----------------------------------------------------------------------------
@dataclass(frozen=True)
class Access:
    """How a server may be reached. By default from this machine only, without TLS.

    Args:
        host: address to listen on.
        api_key: wanted by everything but health; None means everybody may ask.
        tls_cert, tls_key: PEM files for gRPC; both or none.
        tls_ca: PEM file that our own tools check the server with; None means tls_cert.
        control_key: wanted by the endpoints that change the server.
    """

    host: str = LOOPBACK
    api_key: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    control_key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def http_host(self) -> str:
        """Triton's HTTP has no TLS: next to encrypted gRPC it stays on this machine."""
        return self.host if self.tls_cert is None else LOOPBACK

    def options(self) -> list[str]:
        """tritonserver's arguments."""
        grpc, http = "--grpc-restricted-protocol", "--http-restricted-api"
        control = f"{CONTROL_HEADER}={self.control_key}"
        words = [f"{grpc}={CONTROL_ENDPOINTS}:{control}"]
        words += [f"{http}={CONTROL_ENDPOINTS},{INFERENCE}:{control}"]
        if self.api_key is not None:
            key = f"{API_HEADER}={self.api_key}"
            words += [f"{grpc}={API_ENDPOINTS},{INFERENCE}:{key}", f"{http}={API_ENDPOINTS}:{key}"]
        if self.tls_cert is not None:
            words += ["--grpc-use-ssl=true", f"--grpc-server-cert={self.tls_cert}"]
            words += [f"--grpc-server-key={self.tls_key}"]
        return words

    def credentials(self, grpc_port: int) -> Credentials:
        """What our own tools show to this server, which is running.

        Raises:
            ServingError: its certificate does not hold before `tls_ca`.
        """
        ca = self.tls_ca or self.tls_cert
        if ca is None:
            return Credentials(self.control_key, self.api_key)
        name = _certified_name(self.host, grpc_port, ca)
        return Credentials(self.control_key, self.api_key, str(ca.resolve()), name)

    def warnings(self) -> list[str]:
        """What somebody who opens a server to the network should hear."""
        if is_loopback(self.host):
            return []
        found = []
        if self.tls_cert is None:
            found.append(
                f"{self.host} is open to the network without TLS: requests, answers and keys can "
                "be read on the way (--tls-cert FILE --tls-key FILE)"
            )
        if self.api_key is None:
            found.append(
                f"{self.host} is open to the network without a key: whoever reaches it may ask "
                "(--api-key-file FILE)"
            )
        return found

    def hide_keys(self, pid: int) -> None:
        """Blank the keys in the server's command line, which every user of the machine can read.

        Where the system forbids it, they stay readable to them.
        """
        keys = [key.encode() for key in (self.control_key, self.api_key) if key is not None]
        with suppress(OSError, ValueError):
            numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            first, end = int(numbers[45]), int(numbers[46])  # arg_start, arg_end of proc(5)
            with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
                memory.seek(first)
                words = memory.read(end - first)
                for key in keys:
                    words = words.replace(key, b"*" * len(key))
                memory.seek(first)
                memory.write(words)


def open_access(
    host: str,
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_ca: Path | None = None,
    api_key_file: Path | None = None,
) -> Access:
    """The Access of the command line's options.

    Raises:
        ConfigError: a file is missing or unfit, or half of what TLS needs is given.
    """
    if (tls_cert is None) != (tls_key is None) or (tls_ca is not None and tls_cert is None):
        raise ConfigError(
            "TLS needs a certificate and its key", expected="--tls-cert FILE --tls-key FILE"
        )
    if tls_cert is not None:
        _check_pair(tls_cert, tls_key)
    api_key = None if api_key_file is None else read_api_key(api_key_file)
    return Access(host, api_key, tls_cert, tls_key, tls_ca)


def read_api_key(file: Path) -> str:
    """The key in a file.

    Raises:
        ConfigError: no such file, or its text is no key.
    """
    key = _text(file).strip()
    if not _KEY.fullmatch(key):
        raise ConfigError(
            f"{file} holds no usable key",
            expected="one line of 16 to 256 letters, digits, - or _",
            next_step="python -c 'import secrets; print(secrets.token_urlsafe(32))' > FILE",
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"{file} cannot be read", found=reason) from None


def _check_pair(cert: Path, key: Path | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ConfigError(
            f"{cert} and {key} are no certificate and its key",
            expected="PEM files that belong together, the key without a password",
            found=str(error),
        ) from None


def _certified_name(host: str, port: int, ca: Path) -> str:
    """The first name in the certificate of our own server, checked against `ca`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the name is what is asked for
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate may vouch for itself
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(ca)
        with (
            socket.create_connection((reachable(host), port), timeout=10) as plain,
            context.wrap_socket(plain) as secure,
        ):
            certificate: Any = secure.getpeercert()
    except OSError as error:
        raise ServingError(
            "the server's certificate does not hold",
            found=str(error),
            next_step=f"give the certificate that signed it with --tls-ca (now {ca})",
        ) from None
    names = [value for _, value in certificate.get("subjectAltName", ())]
    if not names:
        raise ServingError("the server's certificate has no subjectAltName", found=str(ca))
    return str(names[0])


def reachable(host: str) -> str:
    """An address at which a server that listens on `host` answers this machine."""
    return LOOPBACK if host == "0.0.0.0" else host
