"""The peers' layers as ``nn.Module``. Imports torch: worker side only."""
