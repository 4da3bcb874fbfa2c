"""Scores of texts as the official programs give them: captions against references, answers against annotators'."""
