"""Host side: a Hugging Face or GGUF model becomes a bundle. Imports ``rk3588``, never ``rkruntime``."""

import sys

# The rest of rk3588 runs on the Python 3.9 of a board, and an installation there has this package, too.
if sys.version_info < (3, 10):
    raise ImportError(
        "rkconvert needs Python 3.10 or newer, and this is {}.{}: install rk3588 with a newer one and convert there; "
        "bundles and all other commands work with this one".format(*sys.version_info[:2])
    )
