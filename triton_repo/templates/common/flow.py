"""Keeps the first stage from taking requests that the stages after it have no time for.

A full queue in front of the first stage is refused at once; a full queue later on would waste the
work of the stages before it. Triton has no such brake, so the stages of one server share a few
numbers: rows that the first has let in, rows that the last has done with, and until when each of
the three counts as at work. The first waits while `limit` or more rows are under way and one of
the others is at work. When none is, the rows were lost (an error, or a stage asked alone).
"""

import mmap
import os
import time
from pathlib import Path

import numpy as np

ROLES = ("first", "between", "last")
LET_IN, DONE, AT_WORK = 0, 1, 2  # positions; from AT_WORK on one for each role
LONGEST_BATCH_NS = 1_000_000_000
HAND_OVER_NS = 20_000_000
POLL_S = 0.0005


class Flow:
    """One stage's part.

    Args:
        setting: the role and the limit, as "first 16".
        bundle: what the stages of one bundle, and no others, have in common.
    """

    def __init__(self, setting, bundle):
        role, limit = setting.split()
        self.role, self.limit = ROLES.index(role), int(limit)
        self.lost = 0
        # The stages' common parent is the server; what is left of a dead one is swept by its name.
        file = Path("/dev/shm") / f"marquee-{os.getppid()}-flow-{bundle}"
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            size = (AT_WORK + len(ROLES)) * 8
            os.ftruncate(descriptor, size)
            self.numbers = np.frombuffer(mmap.mmap(descriptor, size), np.int64)
        finally:
            os.close(descriptor)

    def begin(self, rows):
        """Before a batch: the first stage waits here for room."""
        if self.role == 0:
            while self.under_way() >= self.limit and self.others_work():
                time.sleep(POLL_S)
            if self.under_way() >= self.limit:
                self.lost = self.numbers[LET_IN] - self.numbers[DONE]
            self.numbers[LET_IN] += rows
        self.numbers[AT_WORK + self.role] = time.monotonic_ns() + LONGEST_BATCH_NS

    def end(self, rows):
        """After a batch, whatever became of it."""
        self.numbers[AT_WORK + self.role] = time.monotonic_ns() + HAND_OVER_NS
        if self.role == len(ROLES) - 1:
            self.numbers[DONE] += rows

    def under_way(self):
        rows = self.numbers[LET_IN] - self.numbers[DONE] - self.lost
        if rows < 0:  # the last stage was asked alone, or lost rows came after all
            self.lost += rows
            return 0
        return rows

    def others_work(self):
        """Whether rows can still be on their way to the last stage."""
        return self.numbers[AT_WORK:].max() > time.monotonic_ns()
