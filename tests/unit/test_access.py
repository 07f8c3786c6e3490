"""Options of access, keys and warnings, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_repo.access import Access, Credentials, connect, is_loopback, open_access, read_api_key
from workflow.errors import ConfigError, ServingError


def test_control_wants_a_key_of_this_server_only() -> None:
    first, second = Access(), Access()
    assert first.control_key != second.control_key
    options = first.options()
    assert len(options) == 2
    assert "model-repository,shared-memory,trace,logging:" in options[0]
    assert "model-repository,shared-memory,trace,logging,inference:" in options[1]
    for option in options:
        assert option.endswith(f":control-key={first.control_key}")
    assert first.control_key not in repr(first)


def test_an_api_key_covers_the_rest_but_health() -> None:
    options = Access(api_key="k" * 16).options()
    wanted = [option for option in options if ":api-key" in option]
    assert wanted[0].startswith("--grpc") and "=metadata,model-config,statistics,inf" in wanted[0]
    assert wanted[1].startswith("--http") and "=metadata,model-config,statistics:" in wanted[1]
    assert not any("health" in option for option in options)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("::1", True),
     ("0.0.0.0", False), ("192.168.1.4", False), ("::", False), ("example.org", False)],
)  # fmt: skip
def test_only_open_addresses_are_warned_about(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    warnings = Access(host).warnings()
    assert len(warnings) == (0 if loopback else 2)
    if not loopback:
        assert "without TLS" in warnings[0] and "--tls-cert" in warnings[0]
        assert "without a key" in warnings[1] and "--api-key-file" in warnings[1]
        assert len(Access(host, api_key="k" * 16).warnings()) == 1


def test_http_stays_at_home_next_to_tls(tmp_path: Path) -> None:
    assert Access("0.0.0.0").http_host == "0.0.0.0"
    assert Access("0.0.0.0", tls_cert=tmp_path / "c", tls_key=tmp_path / "k").http_host == (
        "127.0.0.1"
    )


@pytest.mark.parametrize("text", ["", "short", "with spaces in the key", "a=b:c,d" * 4, "é" * 20])
def test_keys_that_triton_would_misread(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"no usable key.*16 to 256"):
        read_api_key(file)


def test_key_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef\n")
    assert read_api_key(tmp_path / "key") == "0123456789abcdef"
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("missing", "binary"):
        with pytest.raises(ConfigError, match="cannot be read"):
            open_access("127.0.0.1", api_key_file=tmp_path / name)


def test_half_of_tls_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    for options in ({"tls_cert": file}, {"tls_key": file}, {"tls_ca": file}):
        with pytest.raises(ConfigError, match="a certificate and its key"):
            open_access("0.0.0.0", **options)
    file.write_text("no certificate")
    with pytest.raises(ConfigError, match="no certificate and its key"):
        open_access("0.0.0.0", tls_cert=file, tls_key=file)


def test_headers_and_secrets() -> None:
    shown = Credentials(control_key="c" * 16, api_key="a" * 16)
    assert shown.headers("x-") == {"x-control-key": "c" * 16, "x-api-key": "a" * 16}
    assert Credentials().headers() == {}
    assert "aaaa" not in repr(shown) and "cccc" not in repr(shown)


def test_missing_trusted_certificates_are_named() -> None:
    with pytest.raises(ServingError, match=r"cannot be read.*--tls-ca"):
        connect("127.0.0.1:1", Credentials(tls_ca="nowhere/ca.pem"))
