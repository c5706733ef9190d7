"""``bitorch_engine.layers.qembedding``."""
