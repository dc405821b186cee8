"""Measuring: metrics of features and images, feature extractors, operations, time and memory.

Below training, which uses it: nothing here knows pipelines, evaluations or commands.
"""
