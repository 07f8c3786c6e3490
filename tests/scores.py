"""When two pipelines give a candidate the same score: float32 sums of the same terms."""

from __future__ import annotations

from typing import Any

import numpy as np

SCORE_TOLERANCE = 1e-5  # what the towers and perceptrons add up in another order
# The weighted sum at the end rounds relative to its size, on each side. With string ids, whose
# scores are around -50, a side was up to 1.6 float32 epsilon from the same graph in float64.
SCORE_ROUNDING = 4 * float(np.finfo(np.float32).eps)


def assert_same_scores(found: Any, expected: Any) -> None:
    """Equal but for float32 rounding."""
    np.testing.assert_allclose(found, expected, rtol=SCORE_ROUNDING, atol=SCORE_TOLERANCE)
