"""``bitorch_engine.utils``: helpers for tensors and whole models."""
