"""External weights: what they are, where they can be had, under which licence, and whether this machine has them.

Nothing downloads but `megasr weights fetch`: a run that starts a download of gigabytes unasked, or fails on a machine
without a network after an hour, is worse than one clear line that names the command.
"""

from megasr.weights.local import fetch_command, find_local, mirrors_of, missing_weight, require
from megasr.weights.manifest import MANIFEST, SD21_BASE, PublishedFile, Weight

__all__ = [
    "MANIFEST",
    "SD21_BASE",
    "PublishedFile",
    "Weight",
    "fetch_command",
    "find_local",
    "mirrors_of",
    "missing_weight",
    "require",
]
