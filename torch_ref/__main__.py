"""``python -m torch_ref``: the seed's own test. Prints the net, its shapes and a summary of its layers."""

import argparse
import contextlib
import os
import sys

try:
    import torch
    from torchinfo import summary

    from torch_ref.seed import ShuffleNetV2, configs
except ModuleNotFoundError as error:
    sys.exit(f"torch_ref: this needs {error.name}, which is not installed: pip install 'flax-shufflenet[torch]'")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torch_ref", description=__doc__)
    parser.add_argument("--net_size", type=float, choices=sorted(configs), default=0.5, help="default: 0.5")
    parser.add_argument("--num_classes", type=int, default=10, help="default: 10")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights; default: 0")
    parser.add_argument("--save", metavar="CKPT", help="also save the new net's state_dict, to try the converter with")
    arguments = parser.parse_args()
    if arguments.num_classes < 1:
        parser.error(f"--num_classes must be at least 1, not {arguments.num_classes}")

    torch.manual_seed(arguments.seed)
    net = ShuffleNetV2(arguments.net_size, arguments.num_classes)
    print("Model structure:")
    print(net)

    net.eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        y = net(x)
    print("\nInput shape:", tuple(x.shape))
    print("Output shape:", tuple(y.shape))

    summary(net, tuple(x.shape), verbose=1)

    if arguments.save:
        beside = f"{arguments.save}.partial"
        try:
            torch.save(net.state_dict(), beside)
            os.replace(beside, arguments.save)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            print(f"{arguments.save}: cannot be written ({error}); choose another path", file=sys.stderr)
            return 1
        print(f"Saved {arguments.save}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
