"""Pictures in and out: sources, decoding, exact training order, statistics, sheets and files.

source = open_source("digits")
loaded = load_all(source, ImageOptions(image_size=16, channels=1))
for batch in TrainingBatches(source, ImageOptions(image_size=16, channels=1), batch_size=64, steps=100): ...
"""

from spheregen.data.batches import Batch, Shuffle, TrainingBatches
from spheregen.data.dataset import LoadedImages, OnError, Progress, load_all, validate
from spheregen.data.decoding import BadImage
from spheregen.data.digits import Digits, load_digits
from spheregen.data.grids import image_grid, read_metadata, save_png, to_pil, to_uint8
from spheregen.data.images import ImageOptions, decode_bytes, load_image, read_image, to_model_range
from spheregen.data.order import BlockOrder, SampleOrder, permutation
from spheregen.data.sources import ARCHIVES, Blocks, ImageSource, open_source
from spheregen.data.statistics import SourceStatistics, contact_sheet, source_statistics

__all__ = [
    "ARCHIVES",
    "BadImage",
    "Batch",
    "BlockOrder",
    "Blocks",
    "Digits",
    "ImageOptions",
    "ImageSource",
    "LoadedImages",
    "OnError",
    "Progress",
    "SampleOrder",
    "Shuffle",
    "SourceStatistics",
    "TrainingBatches",
    "contact_sheet",
    "decode_bytes",
    "image_grid",
    "load_all",
    "load_digits",
    "load_image",
    "open_source",
    "permutation",
    "read_image",
    "read_metadata",
    "save_png",
    "source_statistics",
    "to_model_range",
    "to_pil",
    "to_uint8",
    "validate",
]
