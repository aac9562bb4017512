"""What a photograph says about itself, and what of it sr may still say: EXIF, GPS and the colour profile.

Left out is what would be wrong of sr: its orientation (the pixels are upright by then), thumbnails, sizes, how the
old file was laid out, and XMP, which repeats all of these.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

EXIF_IFD, GPS_IFD = 0x8769, 0x8825
# Description, make, model, resolution (3), software, time, artist, copyright: of the photograph, not of the file.
DESCRIBING = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_WIDTH, _HEIGHT = 0xA002, 0xA003
_INTEROPERABILITY = 0xA005  # points into the old file


@dataclass(frozen=True)
class Metadata:
    """What goes with the pixels into the file of sr.

    Attributes:
        tags: tag -> value of the first EXIF directory, those of DESCRIBING.
        folders: EXIF_IFD and GPS_IFD -> their tags.
        profile: ICC profile of the pixels, None when there is none that fits them.
    """

    tags: dict[int, object]
    folders: dict[int, dict[int, object]]
    profile: bytes | None

    def exif(self, width: int, height: int) -> Image.Exif:
        """As Pillow's writers take it, for an image of this size; empty when there is nothing to say."""
        from PIL import Image

        exif = Image.Exif()
        exif.update(self.tags)
        for number, tags in self.folders.items():
            exif.get_ifd(number).update(sized(tags, width, height))
        return exif


def sized(tags: dict[int, object], width: int, height: int) -> dict[int, object]:
    """The tags with another size where they name one."""
    new = {_WIDTH: width, _HEIGHT: height}
    return {tag: new.get(tag, value) for tag, value in tags.items()}


def read_metadata(image: Image.Image, profile: bytes | None) -> Metadata:
    """What an open image says. Damaged EXIF counts as none: the pixels may still be right."""
    try:
        exif = image.getexif()
        tags = {tag: exif[tag] for tag in DESCRIBING if tag in exif}
        folders = {number: dict(exif.get_ifd(number)) for number in (EXIF_IFD, GPS_IFD)}
    except Exception:
        return Metadata({}, {}, profile)
    for found in folders.values():
        found.pop(_INTEROPERABILITY, None)
    return Metadata(tags, {number: found for number, found in folders.items() if found}, profile)


def profile_space(profile: bytes | None) -> str | None:
    """RGB, GRAY, CMYK, ... of an ICC profile; None when there is none or it is damaged."""
    from PIL import ImageCms

    if not profile:
        return None
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return None
