"""Relevance and diversity together: three greedy orders of videos, each O(count * n * dim).

All take relevance float32 [n] in [0, 1], unit vectors float32 [n, dim], how many to choose, and a
strength in [0, 1) (0: by relevance alone), and return the chosen positions, best first.
"""

import numpy as np

WINDOW = 10  # how many of the videos chosen last a sliding spectrum keeps away from
RIDGE = 0.1  # of a DPP's kernel: keeps it regular where there are more videos than dimensions


def mmr(relevance, vectors, count, strength):
    """Maximal marginal relevance: (1 - s) * relevance - s * likeness to the nearest chosen one.

    Source: Carbonell & Goldstein, SIGIR 1998.
    """
    n, dim = vectors.shape
    # One product gives the value of every video as if only the last chosen one were there; the
    # least of these so far is the value with all of them.
    value_after = np.empty((dim + 1, n), np.float32)
    np.multiply(vectors.T, -strength, out=value_after[:dim])
    np.multiply(relevance, 1 - strength, out=value_after[dim])
    asked = np.ones((n, dim + 1), np.float32)
    asked[:, :dim] = vectors
    # Most of the chosen are among the first, where the best are: a product of matrices is cheaper.
    likely = min(n, count + count // 3)
    after = list(asked[:likely] @ value_after)
    value = value_after[dim] + np.float32(strength)
    argmax, minimum, never = value.argmax, np.minimum, -np.inf
    chosen = []
    for _ in range(min(count, n)):
        best = int(argmax())
        chosen.append(best)
        minimum(value, after[best] if best < likely else asked[best] @ value_after, value)
        value[best] = never
    return chosen


def spectrum(relevance, vectors, count, strength):
    """Sliding spectrum: (1 - s) * relevance + s * distance to the span of the last WINDOW chosen.

    Source: Huang et al., Sliding Spectrum Decomposition for Diversified Recommendation, KDD 2021.
    """
    n, dim = vectors.shape
    base = relevance * np.float32(1 - strength)
    strength = np.float32(strength)
    by_dim = np.ascontiguousarray(vectors.T)
    axes = np.zeros((WINDOW, dim), np.float32)  # an orthonormal basis of the window
    shares = np.zeros((WINDOW, n), np.float32)  # of each video along each axis
    left = np.einsum("ij,ij->i", vectors, vectors)  # squared distance to the window's span
    square = np.empty(n, np.float32)
    value = base + strength * np.sqrt(left)
    chosen = []
    for step in range(min(count, n)):
        best = int(value.argmax())
        chosen.append(best)
        base[best] = -np.inf
        slot = step % WINDOW
        if step >= WINDOW:  # the oldest leaves the window
            np.multiply(shares[slot], shares[slot], out=square)
            left += square
            axes[slot] = shares[slot] = 0
        axis = vectors[best] - shares[:, best] @ axes
        axes[slot] = axis / max(np.sqrt(axis @ axis), 1e-6)
        np.dot(axes[slot], by_dim, out=shares[slot])
        np.multiply(shares[slot], shares[slot], out=square)
        left -= square
        np.maximum(left, 0, out=left)
        np.sqrt(left, out=square)
        square *= strength
        np.add(base, square, out=value)
    return chosen


def dpp(relevance, vectors, count, strength):
    """Greedy MAP of a determinantal point process, by an incremental Cholesky decomposition.

    The kernel is q_i S_ij q_j with q = exp(relevance * (1 - s) / 2s) and S = (1 + cosine) / 2,
    with RIDGE of the identity mixed in.

    Source: Chen et al., Fast Greedy MAP Inference for Determinantal Point Process, NeurIPS 2018.
    """
    n, dim = vectors.shape
    if strength == 0:
        return np.argsort(-relevance, kind="stable")[:count].tolist()
    count = min(count, n)
    quality = np.exp(relevance * np.float32((1 - strength) / (2 * strength)))
    # Rows: the kernel's factors, then those of the decomposition so far.
    rows = np.empty((dim + 1 + count, n), np.float32)
    half = np.float32(np.sqrt((1 - RIDGE) / 2))
    rows[:dim], rows[dim] = vectors.T * (quality * half), quality * half
    gain, square = quality * quality, np.empty(n, np.float32)
    chosen = []
    for end in range(dim + 1, dim + 1 + count):
        best = int(gain.argmax())
        chosen.append(best)
        known = rows[:end, best].copy()
        known[dim + 1 :] *= -1
        known /= np.sqrt(max(gain[best], 1e-12))
        np.dot(known, rows[:end], out=rows[end])
        np.multiply(rows[end], rows[end], out=square)
        gain -= square
        gain[best] = -np.inf
    return chosen


def none(relevance, vectors, count, strength):
    """By relevance alone."""
    return np.argsort(-relevance, kind="stable")[:count].tolist()


METHODS = {"mmr": mmr, "spectrum": spectrum, "dpp": dpp, "none": none}
