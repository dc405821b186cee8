"""Networks of others and our small frozen ones: backbones, tokenizers, and where their weights come from."""
