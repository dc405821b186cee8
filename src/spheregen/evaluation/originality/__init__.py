"""Originality: whether samples are copies of training images."""

from spheregen.evaluation.originality.study import Originality, find_copies

__all__ = ["Originality", "find_copies"]
