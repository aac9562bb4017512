"""MegaSR: real-world image super-resolution with a frozen text-to-image prior and customised guidance.

Architecture: arXiv 2503.08096 v2, figure 2, with the choices that the figure leaves open made by config fields.
"""

import logging

# transformers imports bitsandbytes, which advises at every start to install a package that nothing here has a use for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
