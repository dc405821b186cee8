"""Latents of a data set, encoded once by a frozen tokenizer and kept on disk for the training of a latent denoiser.

index = write_latent_cache(tokenizer, source, options, Path("latents"), tokenizer_name=..., ...)
cache = LatentCache("latents")
for batch in LatentBatches(cache, batch_size=64, steps=100): ...
"""

from spheregen.data.latent_cache.batches import LatentBatches
from spheregen.data.latent_cache.index import CacheIndex, CachePlan, Dtype, ShardRecord, is_latent_cache, read_index
from spheregen.data.latent_cache.read import LatentCache
from spheregen.data.latent_cache.write import write_latent_cache

__all__ = [
    "CacheIndex",
    "CachePlan",
    "Dtype",
    "LatentBatches",
    "LatentCache",
    "ShardRecord",
    "is_latent_cache",
    "read_index",
    "write_latent_cache",
]
