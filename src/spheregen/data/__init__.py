"""Pictures in and out: sources, decoding, exact training order, statistics, sheets and files.

source = open_source("digits")
loaded = load_all(source, ImageOptions(image_size=16, channels=1))
for batch in TrainingBatches(source, ImageOptions(image_size=16, channels=1), batch_size=64, steps=100): ...
"""

from spheregen.data.animations import save_animation, save_gif, save_mp4, save_strip
from spheregen.data.batches import Batch, Shuffle, TrainingBatches
from spheregen.data.dataset import LoadedImages, OnError, Progress, load_all, validate
from spheregen.data.decoding import BadImage
from spheregen.data.digits import Digits, load_digits
from spheregen.data.grids import encode_png, image_grid, read_metadata, save_png, to_pil, to_uint8
from spheregen.data.images import ImageOptions, decode_bytes, load_image, read_image, to_model_range
from spheregen.data.order import BlockOrder, SampleOrder, permutation
from spheregen.data.sheets import labelled_sheet
from spheregen.data.sources import ARCHIVES, Blocks, ImageSource, open_source
from spheregen.data.statistics import SourceStatistics, contact_sheet, source_statistics
from spheregen.data.writers import PictureWriter, open_writer

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
    "PictureWriter",
    "Progress",
    "SampleOrder",
    "Shuffle",
    "SourceStatistics",
    "TrainingBatches",
    "contact_sheet",
    "decode_bytes",
    "encode_png",
    "image_grid",
    "labelled_sheet",
    "load_all",
    "load_digits",
    "load_image",
    "open_source",
    "open_writer",
    "permutation",
    "read_image",
    "read_metadata",
    "save_animation",
    "save_gif",
    "save_mp4",
    "save_png",
    "save_strip",
    "source_statistics",
    "to_model_range",
    "to_pil",
    "to_uint8",
    "validate",
]
