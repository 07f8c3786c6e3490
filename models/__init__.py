"""Retriever, ranker, index and evaluation: feature arrays in, models and metrics out."""
