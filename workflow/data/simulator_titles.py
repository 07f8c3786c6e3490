"""Readable, deterministic titles for simulated videos."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow.data.simulator_random import Array, rank_in_group


def _words(text: str) -> list[str]:
    return text.split()


ADJECTIVES = _words(
    "Amber Ancient Blue Bold Borrowed Brave Bright Broken Burning Careful Clever Cold Crooked "
    "Crystal Curious Dancing Distant Early Electric Empty Endless Faithful Fearless First "
    "Floating Forgotten Frozen Gentle Giant Golden Green Hidden Hollow Honest Humble Invisible "
    "Iron Jolly Kind Last Little Lonely Lost Loud Lucky Midnight Modern Narrow Nervous Northern "
    "Old Painted Paper Patient Perfect Proud Quiet Rapid Red Restless Royal Rusty Salty Scarlet "
    "Secret Seventh Shining Silent Silver Simple Sleepy Small Southern Stolen Strange Sudden "
    "Sunny Tender Thirsty Tiny Turning Unlikely Velvet Wandering Warm Wild Winding Wooden Young"
)
NOUNS = _words(
    "Actor Anchor Apple Archive Astronaut Baker Balloon Bell Bicycle Bird Boat Bridge Camera "
    "Candle Captain Carpenter Castle Champion Child City Clock Cloud Coast Comet Compass Cook "
    "Cousin Dancer Daughter Detective Doctor Dragon Driver Echo Engine Falcon Farmer Ferry Field "
    "Fire Forest Fox Friend Game Garden Ghost Guitar Harbour Harvest Heart Horse Hotel House "
    "Island Journey Judge Key King Kitchen Ladder Lamp Letter Library Lighthouse Lion Map Market "
    "Mask Message Mirror Moon Mountain Museum Neighbour Night Ocean Orchard Painter Pilot Planet "
    "Poet Queen Radio Rain River Road Robot Sailor School Season Shadow Singer Sister Snow "
    "Soldier Song Station Storm Stranger Street Summer Teacher Theatre Tiger Tower Train Traveller "
    "Tree Valley Village Violin Voyage Wall Wave Whale Window Winner Winter Witness Wolf Writer"
)
PLACES = _words(
    "Accra Alaska Athens Baku Bergen Bilbao Boston Cairo Cardiff Chennai Cusco Dakar Delhi Dublin "
    "Fiji Geneva Goa Hanoi Havana Iceland Jaipur Kyoto Lagos Lima Lisbon London Lyon Madrid Mali "
    "Malta Manila Marseille Memphis Milan Mumbai Naples Nepal Odessa Osaka Oslo Panama Paris "
    "Patagonia Peru Porto Prague Quito Recife Rio Rome Samoa Seoul Siena Tahiti Tokyo Tunis Turin "
    "Utrecht Venice Vienna Warsaw York Zagreb Zurich"
)


def make_titles(rng: np.random.Generator, kind: Array) -> pa.Array:
    """One title per video; a repeated one gets a part number, so every title is unique.

    Args:
        kind: int8 [videos], 0 = short, 1 = episode, 2 = film.
    Returns:
        string array [videos].
    """
    size = len(kind)
    adjective, noun = _pick(rng, ADJECTIVES, size), _pick(rng, NOUNS, size)
    place = _pick(rng, PLACES, size)
    short = _join(adjective, noun, " in ", place, spaced=1)
    season, episode = rng.integers(1, 7, size), rng.integers(1, 13, size)
    series = _join(adjective, noun, " S", _number(season), " E", _number(episode), spaced=1)
    film = _join("The ", adjective, " ", noun, " of ", place)
    title = pc.if_else(pa.array(kind == 0), short, pc.if_else(pa.array(kind == 1), series, film))
    return _numbered(title)


def _pick(rng: np.random.Generator, words: list[str], size: int) -> pa.Array:
    return pa.array(words).take(pa.array(rng.integers(0, len(words), size)))


def _number(values: Array) -> pa.Array:
    return pa.array(values).cast(pa.string())


def _join(*parts: pa.Array | str, spaced: int = 0) -> pa.Array:
    """Concatenate; the first `spaced` parts are followed by a space."""
    pieces: list[pa.Array | str] = []
    for index, part in enumerate(parts):
        pieces += [part, " "] if index < spaced else [part]
    return pc.binary_join_element_wise(*pieces, "")


def _numbered(title: pa.Array) -> pa.Array:
    codes = title.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    part = rank_in_group(codes)
    again = _join(title, " (", _number(part + 1), ")")
    return pc.if_else(pa.array(part == 0), title, again)
