"""``bitorch_engine.layers.qmha``."""
