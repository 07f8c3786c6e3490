"""The log record of a page: everything it was made from, and the page.

JSON; arrays are base64 of their bytes (little-endian), so that they come back bit for bit.
"""

import base64
import json

import numpy as np

FORMAT = 2
_DTYPES = {
    "online_row": "<i4", "online_watch_s": "<f4", "candidate_row": "<i4",
    "candidate_source": "<i4", "ranker_score": "<f4",
}  # fmt: skip


def encode(version, request, page):
    """Bytes of a record.

    Args:
        version: of the bundle.
        request: the stage's Request; page: the Page it became.
    """
    made_from = {name: _plain(name, value) for name, value in request._asdict().items()}
    record = {
        "format": FORMAT, "bundle_version": version, "request": made_from, "page": page.plain(),
    }  # fmt: skip
    return json.dumps(record, separators=(",", ":")).encode()


def explained(record, retrieved, said):
    """A record with more about how the page came about; what `decode` reads stays.

    Args:
        retrieved: int32 [n], what retrieval found before rules and quotas.
        said: name -> float32 [videos], what the ranker's heads say of the videos shown.
    """
    more = {"retrieved_row": retrieved.tolist()}
    for name, values in said.items():
        more[name] = [float(f"{value:.6g}") for value in values.tolist()]
    return json.dumps({**json.loads(record), "explained": more}, separators=(",", ":")).encode()


def _plain(name, value):
    if name in _DTYPES:
        return base64.b64encode(np.ascontiguousarray(value, _DTYPES[name]).tobytes()).decode()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def decode(text):
    """(version, {field of the Request: value}, the page as `Page.plain` gave it).

    Raises:
        ValueError: it is not a record of this format.
    """
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']} instead of {FORMAT}")
        request = record["request"]
        for name, dtype in _DTYPES.items():
            request[name] = np.frombuffer(base64.b64decode(request[name], validate=True), dtype)
        request["user"] = base64.b64decode(request["user"], validate=True)
        return record["bundle_version"], request, record["page"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a page's log record: {error}") from None
