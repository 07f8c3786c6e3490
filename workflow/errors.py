"""The exception tree.

MarqueeError                 anything a user can act on; the CLI prints it as one line
├── ConfigError              a configuration value is missing or invalid
├── ContractError            the contract file is wrong or does not match the data
├── DataError                the data itself is wrong (values, ids, timestamps, files)
├── MissingArtifactError     a stage needs something an earlier stage has not made
├── StorageError             the disk refused a write
├── TrainingError            a model could not be trained
├── ExportError              a model repository could not be written
├── BundleError              a bundle is incomplete, changed or does not fit the live one
└── ServingError             the server could not start, answer or be reached
    └── StateUnavailableError  the users' events since the export cannot be read or written
"""

from __future__ import annotations


class MarqueeError(Exception):
    """An error with everything a user needs to act on it, on one line.

    Args:
        what: what is wrong, naming the file, column or row.
        expected: what was expected instead.
        found: what was found.
        next_step: the command or edit that leads on.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        next_step: str | None = None,
    ) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        self.next_step = next_step
        super().__init__(self._line())

    def _line(self) -> str:
        parts = [self.what.rstrip(".") + "."]
        labelled = (("Expected", self.expected), ("Found", self.found), ("Next", self.next_step))
        parts += [f"{label}: {' '.join(text.split())}" for label, text in labelled if text]
        return " ".join(part if part.endswith(".") else part + "." for part in parts)


class ConfigError(MarqueeError):
    """A configuration value is missing or invalid."""


class ContractError(MarqueeError):
    """The contract file is wrong or does not match the data."""


class DataError(MarqueeError):
    """The data is wrong: values, ids, timestamps or files."""


class MissingArtifactError(MarqueeError):
    """A stage needs something that an earlier stage has not made."""


class StorageError(MarqueeError):
    """The disk refused a write."""


class TrainingError(MarqueeError):
    """A model could not be trained."""


class ExportError(MarqueeError):
    """A model repository could not be written."""


class BundleError(MarqueeError):
    """A bundle is incomplete, changed or does not fit the live one."""


class ServingError(MarqueeError):
    """The server could not start, answer or be reached."""


class StateUnavailableError(ServingError):
    """The users' events since the export cannot be read or written."""
