"""Refuses requests that the server has no time for, before any work is done for them.

The first stage gives each request a ticket and lets it in while fewer than `limit` rows are under
way; the last stage takes the ticket back. The others are refused at once. The tickets lie in
memory that the stages of one server share. (Triton's own queue limits refuse in any stage, after
the work of those before; and in 2.51 a queue with a policy misses wake-ups, half a second each.)

A request that never reaches the last stage, after an error or because a stage was asked alone,
loses its ticket when no later stage has worked since, at the latest after `LEASE_NS`.
"""

import mmap
import os
import time
from pathlib import Path

import numpy as np

ROLES = ("first", "between", "last")
LEASE_NS = 2_000_000_000
HAND_OVER_NS = 20_000_000
LONGEST_BATCH_NS = 1_000_000_000


class Admission:
    """One stage's part.

    Args:
        setting: the role and the limit, as "first 64".
        bundle: what the stages of one bundle, and no others, have in common.
    """

    def __init__(self, setting, bundle):
        role, limit = setting.split()
        self.role, self.limit = ROLES.index(role), int(limit)
        # The stages' common parent is the server; what is left of a dead one is swept by its name.
        file = Path("/dev/shm") / f"marquee-{os.getppid()}-admission-{bundle}"
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            size = (len(ROLES) + 2 * self.limit) * 8
            os.ftruncate(descriptor, size)
            shared = np.frombuffer(mmap.mmap(descriptor, size), np.int64)
        finally:
            os.close(descriptor)
        self.seen = shared[: len(ROLES)]  # when each role was last at work
        self.when, self.rows = shared[len(ROLES) :].reshape(2, self.limit)  # by ticket; 0 = free

    def admit(self, sizes):
        """A ticket, or None, for each request, given by its rows."""
        now, later_seen = time.monotonic_ns(), self.seen[1:].max()
        patience = np.where(later_seen < self.when, HAND_OVER_NS, LEASE_NS)
        self.when[now - self.when > patience] = 0
        under_way = int(self.rows[self.when > 0].sum())
        free = np.flatnonzero(self.when == 0).tolist()
        tickets = []
        for size in sizes:
            ticket = free.pop() if free and under_way < self.limit else None
            if ticket is not None:
                self.rows[ticket], self.when[ticket] = size, now
                under_way += size
            tickets.append(ticket)
        return tickets

    def begin(self):
        """Before a batch."""
        self.seen[self.role] = time.monotonic_ns() + LONGEST_BATCH_NS

    def end(self, tickets):
        """After a batch, whatever became of it; the last stage knows the tickets."""
        self.seen[self.role] = time.monotonic_ns()
        for ticket in tickets:
            if 0 <= ticket < self.limit:
                self.when[ticket] = 0
