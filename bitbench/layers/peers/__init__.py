"""Other people's low-bit layers, measured beside our own on the same work.

Each file is one peer: a layer kind as any other, with its own cost model and its own exact
reference, which decodes what the peer stores and repeats its activation quantisation. Whatever a
peer does to the activations happens inside the timed call. A peer whose package is missing is
``unsupported`` with the command that installs it; it is never left out.

The kinds import neither torch nor their package: suites that name them are planned anywhere.
:mod:`bitbench.layers.peers.modules` holds what a worker runs.
"""
