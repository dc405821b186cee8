"""Networks whose features the metrics compare."""

from spheregen.evaluation.features.base import FeatureBatch, FeatureExtractor, FeatureInfo
from spheregen.evaluation.features.loading import EXTRACTORS, load_extractor

__all__ = ["EXTRACTORS", "FeatureBatch", "FeatureExtractor", "FeatureInfo", "load_extractor"]
