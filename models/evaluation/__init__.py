"""Evaluation: metrics per user, intervals, protocols, baselines, and the result of a run."""
