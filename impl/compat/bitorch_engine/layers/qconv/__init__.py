"""``bitorch_engine.layers.qconv``."""
