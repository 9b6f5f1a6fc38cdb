"""The bridge between PyTorch checkpoints and Flax nets; the only package that imports both."""
