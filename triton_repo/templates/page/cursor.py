"""The cursor of a page: which videos this and the earlier answers showed. Opaque to clients.

It is base64 of: version int64, page int16, bytes per step int8, then the steps between the sorted
video rows. Rows mean something within one bundle only.
"""

import base64
import binascii
import struct

import numpy as np

_HEAD = struct.Struct("<qhb")
NO_ROWS = np.zeros(0, np.int32)
LONGEST = 200_000  # characters


def encode(version, page, rows):
    """Text for the page after number `page`, when `rows` were shown so far."""
    steps = np.sort(rows)
    steps[1:] -= steps[:-1].copy()
    width = 2 if steps.max(initial=0) < 1 << 16 else 4
    body = steps.astype(f"<u{width}").tobytes()
    return base64.urlsafe_b64encode(_HEAD.pack(version, page + 1, width) + body)


def decode(text):
    """(version, page, int32 rows shown).

    Raises:
        ValueError: it is no cursor of ours.
    """
    try:
        if len(text) > LONGEST:
            raise ValueError("too long")
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
        version, page, width = _HEAD.unpack_from(raw)
        if width not in (2, 4) or page < 1:
            raise ValueError("not one that was given out")
        steps = np.frombuffer(raw, f"<u{width}", offset=_HEAD.size)
    except (ValueError, binascii.Error, struct.error) as error:
        raise ValueError(f"cursor is not one of this server: {error}") from None
    rows = np.cumsum(steps, dtype=np.int64)
    if len(rows) and rows[-1] >= 1 << 31:
        raise ValueError("cursor is not one of this server: no such videos")
    return version, page, rows.astype(np.int32)
