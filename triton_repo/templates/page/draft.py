"""One page in the making: row after row, until the layout is full or nothing is left.

Order: Continue watching, what is like the video watched last where that was just now, Top picks,
rows chosen stage by stage (rows.py), More for you, then the fallbacks: Popular in the viewer's
country, Popular.
"""

import numpy as np

SECONDS_PER_DAY = 86_400
TITLES = {
    "continue": b"Continue watching", "top": b"Top picks", "trending": b"Trending now",
    "new": b"New releases", "more": b"More for you", "popular": b"Popular",
}  # fmt: skip


class Draft:
    """Rows so far. Candidates are referred to by their positions in `order_candidates`.

    Args:
        stage: the page stage.
        number: 0 for the first answer, then what the cursor says.
    """

    def __init__(self, stage, request, viewer, past, number):
        self.stage, self.request, self.viewer, self.past = stage, request, viewer, past
        self.number = number
        settings = stage.settings
        layouts = settings["layouts"]
        size = layouts.get(request.device) or layouts[settings["default_device"]]
        self.wanted, self.columns = size
        self.least = min(settings["min_row_videos"], self.columns)
        day = request.moment // SECONDS_PER_DAY
        self.chance = stage.explore_module.Chance(request.user, day, number)
        self.kinds, self.titles, self.sizes = [], [], []
        self.parts = []  # (rows, scores, sources, propensities)
        self.nation = b""
        if viewer.country and stage.sources.table(viewer.country):
            self.nation = b" in " + settings["countries"][viewer.country - 1].encode()

    # --- parts of the page -----------------------------------------------------------------------
    def go_on_watching(self):
        """What the user began and did not finish, latest first."""
        rows = np.array(self.past.unfinished if self.number == 0 else [], np.int32)
        if len(rows):
            rows = rows[self.stage.rules.allowed(rows, self.viewer)][: self.columns]
        if len(rows):
            self._name("continue", TITLES["continue"], len(rows))
            self._unranked(rows, self.stage.sources_module.CONTINUE)

    def recommend(self):
        """Rows of what the ranker scored."""
        self._order_candidates()
        if len(self.rows) == 0 or self._left() == 0:
            return
        board = self._board()
        placed = []
        if self.number == 0:
            if self.past.num_now:  # its row is the board's first
                placed += board.place(0, self._like(self.past.seeds[0], board), self.least)
            if self._left() > len(placed):
                placed.append(board.top(self.columns))
        self.propensity = np.ones(len(self.rows), np.float32)
        placed += board.choose(
            self._left() - len(placed), self.columns, self.least, self._with_exploration(board)
        )
        left, more = self._left() - len(placed), self.stage.rows_module.Kind("more")
        for part in self.stage.rows_module.chunks(board.rest(), left, self.columns, self.least):
            placed.append(self.stage.rows_module.Row(more, part))
        if not placed:
            return
        self.kinds += [row.kind.name.encode() for row in placed]
        self.titles += [self._title(row.kind) for row in placed]
        self.sizes += [len(row.positions) for row in placed]
        at = np.concatenate([row.positions for row in placed])
        columns = (self.rows, self.scores, self.source, self.propensity)
        self.parts.append(tuple(values.take(at) for values in columns))

    def fall_back(self):
        """What is popular in the country, then everywhere, in rows as long as the layout wants."""
        sources = self.stage.sources
        own = sources.table(self.viewer.country)
        for table in (own, 0) if own else (0,):
            if self._left() == 0:
                break
            title = TITLES["popular"] + (self.nation if table else b"")
            with self.stage.hiding(self.rows_so_far()):
                rows = self._popular(sources.popular_row[table])
            parts = self.stage.rows_module.chunks(rows, self._left(), self.columns, self.least)
            for part in parts:
                self._name("popular", title, len(part))
            self._unranked(rows[: sum(map(len, parts))], self.stage.sources_module.POPULAR)

    def _popular(self, rows):
        """The first of `rows` that fill what is left, as far as the rules allow."""
        wanted = self._left() * self.columns
        for tried in (rows[: 2 * wanted], rows):
            found = tried[self.stage.rules.allowed(tried, self.viewer)]
            if len(found) >= wanted:
                break
        return found[:wanted]

    # --- candidates ------------------------------------------------------------------------------
    def _order_candidates(self):
        """Set rows, scores, source and vectors of what may be shown, in the diverse order."""
        request, stage = self.request, self.stage
        ok = stage.rules.allowed(request.candidate_row, self.viewer)
        ok &= np.isfinite(request.ranker_score)
        keep = stage.sources.first_places(request.candidate_row, ok.nonzero()[0])
        score = request.ranker_score.take(keep)
        settings, relevance = stage.settings, np.zeros(len(score), np.float32)
        rows = request.candidate_row.take(keep)
        vectors = stage.diversity_vector.take(rows, axis=0)
        if len(score):
            low = score.min()
            relevance += (score - low) / max(float(score.max() - low), 1e-9)
        now = self.past.seeds[: self.past.num_now]
        if now:
            strength = np.float32(settings["session_strength"])
            relevance += strength * self._shared(now, rows)
        by_worth = np.argsort(-relevance if now else -score, kind="stable")
        keep, rows, score = keep.take(by_worth), rows.take(by_worth), score.take(by_worth)
        relevance, vectors = relevance.take(by_worth), vectors.take(by_worth, axis=0)
        chosen = np.array(
            stage.diversify(
                relevance, vectors, settings["diversity_depth"], settings["diversity_strength"]
            ),
            np.int64,
        )
        is_left = np.ones(len(keep), bool)
        is_left[chosen] = False
        order = np.concatenate([chosen, is_left.nonzero()[0]])
        self.rows, self.scores = rows.take(order), score.take(order)
        self.source = request.candidate_source.take(keep.take(order))
        self.vectors = vectors.take(order, axis=0)

    def _shared(self, seeds, rows):
        """How much of the groups of the seeds each video has; float32 [n], from 0 to 1."""
        group = self.stage.group
        weight = np.zeros(len(self.stage.settings["groups"]) + 1, np.float32)
        for seed in seeds:
            own = group[seed][group[seed] > 0]
            weight[own] += 1 / max(len(own) * len(seeds), 1)
        return weight.take(group.take(rows, axis=0)).sum(axis=1)

    def _like(self, seed, board):
        """Positions of the row of what was watched last, the board's first kind."""
        own = self.stage.group[seed]
        groups = board.member[len(self.past.seeds) + 1 + own[own > 0]]  # as `membership` has them
        return self.stage.rows_module.by_turns(board.member[0], board.free, groups, self.columns)

    def _board(self):
        stage, rows = self.stage, self.stage.rows_module
        settings, seeds = stage.settings, self.past.seeds
        num_groups = len(settings["groups"])
        member = rows.membership(
            self.source, stage.group.take(self.rows, axis=0), len(seeds), num_groups,
            stage.sources_module,
        )  # fmt: skip
        kinds = rows.kinds_of(seeds, num_groups)
        if self.number > 0:  # rows with a reason of their own are on the first answer
            member, kinds = member[len(seeds) + 2 :], kinds[len(seeds) + 2 :]
        board = rows.Board(
            kinds, member, self.vectors, settings["diversity_strength"], settings["row_worth"]
        )
        if self.number == 0:  # what is being watched now comes first
            board.prior[: self.past.num_now] *= rows.NOW
            for at, kind in enumerate(kinds):
                if kind.name in rows.PROMISED:
                    board.promise(at, self.columns, self.least)
        return board

    def _with_exploration(self, board):
        """What `Board.choose` does to the row of new releases."""
        stage, slots = self.stage, self.stage.settings["explore_slots"]
        kinds = [at for at, kind in enumerate(board.kinds) if kind.name == "new"]
        if slots == 0 or not kinds:
            return {}
        [kind] = kinds

        def change(positions):
            pool = board.free_of(kind, len(self.rows))
            positions, drawn = stage.explore_module.explore(
                positions.tolist(), pool.tolist(), slots, self.chance
            )
            for place, propensity in drawn.items():
                self.propensity[positions[place]] = propensity
                self.source[positions[place]] |= stage.sources_module.EXPLORE
            return np.array(positions)

        return {kind: change}

    # --- bookkeeping -----------------------------------------------------------------------------
    def _left(self):
        return self.wanted - len(self.sizes)

    def rows_so_far(self):
        rows = [part[0] for part in self.parts]
        return np.concatenate(rows) if rows else self.stage.cursor_module.NO_ROWS

    def _name(self, kind, title, size):
        self.kinds.append(kind.encode())
        self.titles.append(title)
        self.sizes.append(size)

    def _unranked(self, rows, source):
        """Add videos that the ranker did not see."""
        columns = np.empty((3, len(rows)), np.float32)
        columns[0], columns[1], columns[2] = np.nan, source, 1
        self.parts.append((rows, columns[0], columns[1].astype(np.int32), columns[2]))

    def _title(self, kind):
        if kind.name == "genre":
            return self.stage.group_titles[kind.subject]
        if kind.name == "because":
            return b"Because you watched " + self.stage.title(kind.subject)
        return TITLES[kind.name] + (self.nation if kind.name == "trending" else b"")

    def columns_so_far(self):
        """rows, scores, sources and propensities of all videos."""
        dtypes = (np.int32, np.float32, np.int32, np.float32)
        nothing = tuple(np.zeros(0, dtype) for dtype in dtypes)
        return tuple(map(np.concatenate, zip(nothing, *self.parts, strict=True)))
