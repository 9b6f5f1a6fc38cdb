"""Trains a ShuffleNetV2: ``python train.py --net_size 1.0``; ``--help`` lists the options."""

import sys

from flax_shufflenet.commands.train import main

if __name__ == "__main__":
    sys.exit(main("python train.py"))
