"""A picture in a file, as a person sees it.

It is turned as its EXIF says, transparent pixels are put on white, 16 bits of grey are scaled to 8; of several frames
it is the first. Grey is what holds no colours by its format: black and white, 8 or 16 bits of grey.
"""

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias
from warnings import catch_warnings, simplefilter

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainers.data.fetching import fingerprint, one_line

Size: TypeAlias = int | tuple[int, int]
"""Of images that are scaled and cropped: a side in pixels, or height and width."""

ENDINGS = (
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
    *(".jpf", ".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tif", ".tiff", ".webp"),
)
"""Of pictures, where this machine's Pillow reads them. Not among them: what needs another program (PostScript), what
any file may pass for (TGA), and what holds no 8 bits a channel."""
DEEP = 65535  # white, in 16 bits
LARGEST = 2 * 89_478_485  # pixels; Pillow refuses to read larger images
_GREY = ("1", "L", "LA", "La")

TRANSPARENT = "with transparent pixels, put on white"
DEEP_GREY = "with 16 bits of grey, scaled to 8"
FRAMES = "of several frames or pages, of which the first is read"
AS_SEEN = "turned by EXIF orientation; transparent pixels on white; 16 bits of grey divided by 257"


@dataclass(frozen=True)
class Picture:
    """A picture that was read, or why it was not."""

    pixels: np.ndarray | None
    """(H, W) uint8 of a grey one, else (H, W, 3)."""
    why_not: str = ""
    remarks: tuple[str, ...] = ()
    """What may surprise: TRANSPARENT, FRAMES."""
    brightest: int | None = None
    """The largest value of one with 16 bits of grey, of DEEP."""


@cache
def formats() -> dict[str, str]:
    """Ending -> what Pillow calls the format, of the endings that this machine's Pillow reads."""
    Image.init()
    return {ending: name for ending, name in Image.registered_extensions().items() if ending in ENDINGS}


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings of pictures that it reads all the same."""
    with catch_warnings():
        simplefilter("ignore")
        yield


def content_of(path: Path) -> bytes:
    """Of a file; nothing but a file is opened, since that might take for ever.

    Raises:
        ValueError: it is none, or empty.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("no file, but a pipe, a socket, a device or a folder")
    if not status.st_size:
        raise ValueError("empty")
    return path.read_bytes()


def why_not(error: Exception, path: Path | None = None) -> str:
    """Why a picture cannot be read, in a few words; `path`: where it is, if it is a file of its own."""
    if isinstance(error, FileNotFoundError):
        return "a link to nothing" if path is not None and path.is_symlink() else "gone"
    if isinstance(error, UnidentifiedImageError):
        return "no image, or its head is broken"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = one_line(error)
    return text if len(text) <= 80 else text[:79] + "…"


def glanced(content: bytes) -> tuple[tuple[int, str], bool | None]:
    """What tells a file's content from others, and whether its picture is grey, by its head alone.

    None where that cannot be read; `decoded` says why.
    """
    try:
        with _opened(content) as image:
            return fingerprint(content), _is_grey(image)
    except Exception:  # whatever Pillow's readers raise
        return fingerprint(content), None


def decoded(content: bytes, size: Size | None) -> Picture:
    """The picture in a file, scaled and cropped by `fitted` where a size is asked for."""
    try:
        with _opened(content) as image:
            # an MPO, which JPEG's reader makes of some, is a photograph and its copies
            frames = (FRAMES,) if getattr(image, "is_animated", False) and image.format != "MPO" else ()
            return from_image(image, size, frames)
    except Exception as error:  # OSError, SyntaxError, struct.error, OverflowError, ...
        return Picture(None, why_not(error))


def from_image(image: Image.Image, size: Size | None, remarks: tuple[str, ...] = ()) -> Picture:
    """A picture that Pillow has opened; `remarks`: that were made so far."""
    try:
        picture, more, brightest = _as_seen(image)
        return Picture(np.asarray(fitted(picture, size)), "", remarks + more, brightest)
    except Exception as error:
        return Picture(None, why_not(error))


def _opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=list(dict.fromkeys(formats().values())))


def _is_grey(image: Image.Image) -> bool:
    return image.mode in _GREY or _is_deep(image)


def _is_deep(image: Image.Image) -> bool:
    """Whether it has 16 bits of grey."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))


def _as_seen(image: Image.Image) -> tuple[Image.Image, tuple[str, ...], int | None]:
    """In mode L or RGB; what may surprise; the largest value of 16 bits of grey."""
    is_grey, is_deep = _is_grey(image), _is_deep(image)
    image.load()
    with suppress(Exception):  # EXIF that is broken says nothing; the pixels are sound
        image = ImageOps.exif_transpose(image)
    if is_deep:
        values = np.asarray(image).astype(np.int64)
        grey = ((values + 128) // 257).clip(0, 255)  # 65535 / 255 is 257
        return Image.fromarray(grey.astype(np.uint8)), (), int(values.max())
    if image.mode in ("I", "F"):
        raise ValueError(f"32 bits a pixel, mode {image.mode}; nothing says which value is white")
    mode = "L" if is_grey else "RGB"
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        if np.asarray(layered)[:, :, 3].min() < 255:
            white = Image.new("RGBA", layered.size, "white")
            return Image.alpha_composite(white, layered).convert(mode), (TRANSPARENT,), None
    return image.convert(mode), (), None


def fitted(picture: Image.Image, size: Size | None) -> Image.Image:
    """Scaled until it just covers `size` (bilinear, antialiased), and the middle cut out; None leaves it as it is.

    Raises:
        ValueError: it is so narrow that it would become too large on the way.
    """
    if size is None:
        return picture
    height, width = (size, size) if isinstance(size, int) else size
    if height * picture.width >= width * picture.height:
        scaled = max(width, int(height * picture.width / picture.height)), height
    else:
        scaled = width, max(height, int(width * picture.height / picture.width))
    if scaled[0] * scaled[1] > LARGEST:
        shown = size if isinstance(size, int) else list(size)
        raise ValueError(f"{picture.width}x{picture.height} is too narrow for task.image_size {shown}")
    picture = picture.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def preparation(size: Size | None, origin: str = AS_SEEN) -> str:
    """How pixels come from where they are kept, for who feeds an exported student."""
    if size is None:
        return f"{origin}; as large as in the files"
    if isinstance(size, int):
        return (
            f"{origin}; shorter side scaled to {size} pixels (bilinear, antialiased), the middle {size} x {size} "
            "cut out"
        )
    height, width = size
    return (
        f"{origin}; scaled to cover {height} x {width} pixels (height x width; bilinear, antialiased), the middle "
        f"{height} x {width} cut out"
    )


def from_array(values: np.ndarray, size: Size | None, *, channels_first: bool = False) -> Picture:
    """An image in memory, (H, W), (H, W, C) or (C, H, W): uint8, or floats in [0, 1], rounded to 256 levels.

    Where the last axis may be channels and the first, too, it is the last, unless `channels_first`.
    """
    if values.ndim == 3 and values.shape[0] in (1, 3) and (channels_first or values.shape[2] not in (1, 3)):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,)):
        return Picture(None, f"of shape {values.shape}, and not of 1 or 3 channels")
    if not values.size:
        return Picture(None, "without pixels")
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            return Picture(None, "floats that are not in [0, 1]")
        values = np.rint(values * np.float64(255)).astype(np.uint8)
    if values.dtype != np.uint8:
        return Picture(None, f"{values.dtype}, and neither uint8 nor floats in [0, 1]")
    if size is None:
        return Picture(values)
    try:
        return Picture(np.asarray(fitted(Image.fromarray(np.ascontiguousarray(values)), size)))
    except ValueError as error:
        return Picture(None, str(error))
