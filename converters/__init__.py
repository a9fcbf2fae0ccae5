"""Files to embeddings and back. Never imports torch, numpy, diffusers or the pipeline at import time."""
