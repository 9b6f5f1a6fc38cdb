"""The devices that JAX is told to compute on."""

import os

from flax_shufflenet.errors import OptionError


def check_platforms() -> None:
    """Looks for JAX's devices, which is not to be done before the processes of a run have found each other.

    Raises:
        OptionError: ``JAX_PLATFORMS`` names none that is here.
    """
    import jax

    named = os.environ.get("JAX_PLATFORMS")
    try:
        jax.devices()
    except Exception:  # RuntimeError, or AssertionError without a message
        if not named:
            raise
        raise OptionError(
            f"JAX_PLATFORMS={named}: JAX finds no such device here; unset it to use what there is"
        ) from None
