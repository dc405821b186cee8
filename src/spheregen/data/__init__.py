"""Images in and out: sources, decoding, exact training order, statistics, sheets and files.

source = open_source("digits")
loaded = load_all(source, ImageOptions(image_size=16, channels=1))
for batch in TrainingBatches(source, ImageOptions(image_size=16, channels=1), batch_size=64, steps=100): ...
"""

from spheregen.data.decoding import BadImage, LoadedImages, OnError, Progress, load_all
from spheregen.data.grids import (
    encode_png,
    find_ffmpeg,
    image_grid,
    labelled_sheet,
    read_metadata,
    save_animation,
    save_png,
    to_pil,
    to_uint8,
)
from spheregen.data.images import load_image, to_model_range
from spheregen.data.loader import Batch, Shuffle, TrainingBatches
from spheregen.data.names import ARCHIVES
from spheregen.data.opening import open_source
from spheregen.data.order import BlockOrder, SampleOrder, permutation
from spheregen.data.source import Blocks, ImageSource
from spheregen.data.statistics import SourceStatistics, contact_sheet, source_statistics
from spheregen.data.writers import ImageWriter, open_writer
from spheregen.pixels import ImageOptions, decode_bytes, read_image

__all__ = [
    "ARCHIVES",
    "BadImage",
    "Batch",
    "BlockOrder",
    "Blocks",
    "ImageOptions",
    "ImageSource",
    "ImageWriter",
    "LoadedImages",
    "OnError",
    "Progress",
    "SampleOrder",
    "Shuffle",
    "SourceStatistics",
    "TrainingBatches",
    "contact_sheet",
    "decode_bytes",
    "encode_png",
    "find_ffmpeg",
    "image_grid",
    "labelled_sheet",
    "load_all",
    "load_image",
    "open_source",
    "open_writer",
    "permutation",
    "read_image",
    "read_metadata",
    "save_animation",
    "save_png",
    "source_statistics",
    "to_model_range",
    "to_pil",
    "to_uint8",
]
