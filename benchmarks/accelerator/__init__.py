"""``python -m benchmarks.accelerator``: parity, speed and memory on the accelerator that JAX and PyTorch find."""
