"""``bitorch_engine.layers``: the layers by the module paths of the original."""
