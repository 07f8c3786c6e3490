"""Plain nested values with those of a TOML file and of `section.key=value` options on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflow import toml
from workflow.errors import ConfigError


def overridden(values: dict[str, Any], file: Path | None, options: list[str]) -> dict[str, Any]:
    """`values` with those of `file` on top, then each option in turn; `values` is left alone.

    Args:
        values: by name; a section is a dictionary.
        file: TOML, or None.
        options: "section.key=value"; the value is TOML, or a bare word.
    Raises:
        ConfigError: no such file, a file that is not TOML, or an option of another form.
    """
    if file is not None:
        values = _merged(values, _read(file))
    for option in options:
        values = _merged(values, _parsed(option))
    return values


def _read(file: Path) -> dict[str, Any]:
    try:
        return toml.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file {file}") from None
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {file} is not TOML", found=str(error)) from error


def _parsed(option: str) -> dict[str, Any]:
    key, equals, text = option.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"override {option!r}",
            expected="section.key=value",
            next_step="see marquee run --help",
        )
    try:
        value = toml.loads(f"value = {text}")["value"]
    except toml.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in extra.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            both[key] = _merged(old, value)
        else:
            both[key] = value
    return both
