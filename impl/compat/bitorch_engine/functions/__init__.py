"""``bitorch_engine.functions``: packing of single tensors."""
