"""``python -m torch_ref``: the seed's own test. Prints the net, its shapes and a summary of its layers."""

import argparse
import contextlib
import os
import secrets
import sys

try:
    import torch
    from torchinfo import summary

    from torch_ref.seed import ShuffleNetV2, configs
except ModuleNotFoundError as error:
    sys.exit(f"torch_ref: this needs {error.name}, which is not installed: pip install 'flax-shufflenet[torch]'")


MOST_CLASSES = 100_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torch_ref", description=__doc__)
    parser.add_argument("--net_size", type=float, choices=sorted(configs), default=0.5, help="default: 0.5")
    parser.add_argument("--num_classes", type=int, default=10, help="default: 10")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights; default: 0")
    parser.add_argument("--save", metavar="CKPT", help="also save the new net's state_dict, to try the converter with")
    parser.add_argument("--force", action="store_true", help="overwrite CKPT where it exists")
    arguments = parser.parse_args()
    if not 1 <= arguments.num_classes <= MOST_CLASSES:
        parser.error(f"--num_classes must be from 1 to {MOST_CLASSES:,}, not {arguments.num_classes}")
    if not 0 <= arguments.seed < 2**63:
        parser.error(f"--seed must be from 0 to {2**63 - 1}, not {arguments.seed}")
    if arguments.save and os.path.lexists(arguments.save) and not (arguments.force and os.path.isfile(arguments.save)):
        what = "exists; choose another path, or overwrite it with --force"
        if os.path.exists(arguments.save) and not os.path.isfile(arguments.save):
            what = "exists and is no regular file; choose another path"
        print(f"{arguments.save}: {what}", file=sys.stderr)
        return 1

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
        beside = f"{arguments.save}.{secrets.token_hex(8)}.partial"
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
