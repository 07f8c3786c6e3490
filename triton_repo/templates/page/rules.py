"""Hard rules: who looks, and which videos may be shown to them.

Files, by video row: maturity.npy (place of the rating among the ratings, mildest first),
countries.npy (bits, [byte, row]: bit 0 where it may be shown everywhere, bit c in country c) and
window.npy ([2, row]: from, until; unix seconds). By user row: user_country.npy (0 = not known) and
user_limit.npy (how many of the ratings are allowed, 0 = not known).

Not known means careful: an unknown country sees what may be shown everywhere, a video without a
rating counts as the strictest.
"""

from bisect import bisect_right
from typing import NamedTuple

import numpy as np


def open_array(path):
    """A memory-mapped array; as a plain ndarray it is cheaper to index than a memmap."""
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


class Viewer(NamedTuple):
    """Who looks, when."""

    country: int  # 1, 2, ... into the settings' countries; 0 = not known
    limit: int  # ratings below this place are allowed
    moment: int  # unix seconds


class Rules:
    """The rules of one bundle. Not for several threads: `hidden` is shared.

    Args:
        settings: "countries" (names), "ratings" (mildest first), "unknown_limit".
    """

    def __init__(self, folder, settings):
        for name in ("maturity", "countries", "window", "user_country", "user_limit"):
            setattr(self, name, open_array(folder / f"{name}.npy"))
        self.country_of = {name: code for code, name in enumerate(settings["countries"], 1)}
        self.ratings, self.unknown_limit = settings["ratings"], settings["unknown_limit"]
        self.limit_of = {rating: place + 1 for place, rating in enumerate(self.ratings)}
        self.hidden = np.zeros(len(self.maturity), bool)  # what this one viewer is not shown

    def viewer(self, user_row, moment, country, maturity):
        """The viewer of a request.

        Args:
            country: text of the request, or None: where the user lives.
            maturity: text of the request, or None; it can make the user's own limit stricter only.
        """
        code = int(self.user_country[user_row])
        if country is not None:
            code = self.country_of.get(country, 0)
        known = int(self.user_limit[user_row])
        limits = [known] if known else []
        if maturity is not None:
            limits.append(self.limit(maturity))
        return Viewer(code, min(limits, default=self.unknown_limit), moment)

    def limit(self, text):
        """How many ratings a limit allows; one that nobody knows allows the mildest only."""
        if self.ratings and isinstance(self.ratings[0], int):
            digits = text.lstrip("-").isdigit()
            return bisect_right(self.ratings, int(text)) if digits else 1
        return self.limit_of.get(text, 1)

    def allowed(self, rows, viewer):
        """bool, shape of `rows`; row 0 (padding) never is."""
        rows = rows.astype(np.intp)  # once; each look-up would do it again
        bits = self.countries[viewer.country >> 3].take(rows)
        ok = (bits & (1 << (viewer.country & 7))) != 0
        ok &= self.maturity.take(rows) < viewer.limit
        ok &= self.window[0].take(rows) <= viewer.moment
        ok &= self.window[1].take(rows) > viewer.moment
        ok &= ~self.hidden.take(rows)
        return ok


class Hiding:
    """A block in which the rules leave out some rows."""

    def __init__(self, hidden, rows):
        self.hidden, self.rows = hidden, rows

    def __enter__(self):
        for rows in self.rows:
            self.hidden[rows] = True

    def __exit__(self, *error):
        for rows in self.rows:
            self.hidden[rows] = False
