"""bitbench: can binary, ternary or k-ternary layers replace ``nn.Linear`` in my model?

The suite runner. It measures the layers of :mod:`impl` and any registered peer. Importing this
package imports no torch: only worker processes do.
"""

__version__ = "0.1.0"
