"""Originality: whether samples are copies of training images."""

from spheregen.evaluation.originality.compare import Matches
from spheregen.evaluation.originality.match import working_images
from spheregen.evaluation.originality.study import Originality, find_copies

__all__ = ["Matches", "Originality", "find_copies", "working_images"]
