"""Exploration: a few places of a row go by chance to new videos, with known propensities."""

import hashlib

PLACES = (3, 7, 10, 12, 14, 15, 16, 17, 18, 19)  # of the row, from 0; the best keep the first
_MASK, _STEP = (1 << 64) - 1, 0x9E3779B97F4A7C15


class Chance:
    """Uniform numbers that a user, a day and a page number decide, the same ones every time.

    Source of the numbers: Steele et al., Fast splittable pseudorandom number generators, OOPSLA
    2014 (SplitMix64).
    """

    def __init__(self, user, day, page):
        text = b"%d %d %b" % (day, page, user)
        self.seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        self.state = self.seed

    def below(self, count):
        """A whole number from 0 to count - 1."""
        self.state = (self.state + _STEP) & _MASK
        mixed = self.state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((mixed ^ (mixed >> 31)) * count) >> 64


def explore(row, pool, slots, chance):
    """Give places of a row to videos drawn from a pool, each as likely as the others.

    Args:
        row: positions of the row's videos, best first.
        pool: positions of the videos that may be drawn, those of `row` among them.
        slots: how many places, of PLACES.
    Returns:
        (positions, {place: propensity}); a propensity is that of this video at this place, given
        the row without the drawn places and the draws before it. The row keeps its length; what a
        drawn video displaces moves on by one place or falls off the end.
    """
    places = [place for place in PLACES[:slots] if place < len(row)]
    kept = row[: len(row) - len(places)]
    is_kept = set(kept)
    drawn_from = [position for position in pool if position not in is_kept]
    result, propensity = list(kept), {}
    for place in places:
        if not drawn_from:
            break
        propensity[place] = 1 / len(drawn_from)
        result.insert(place, drawn_from.pop(chance.below(len(drawn_from))))
    return result, propensity
