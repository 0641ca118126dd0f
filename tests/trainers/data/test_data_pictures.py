import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from trainers.data.pictures import Picture, decoded, fitted, glanced

COLOURS = np.random.default_rng(0).integers(256, size=(24, 16, 3), dtype=np.uint8)
GREYS = COLOURS[:, :, 0]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def png(values: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write; values: (H, W, channels)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def pixels(picture: Picture) -> np.ndarray:
    assert picture.pixels is not None, picture.why_not
    return picture.pixels


PLAIN = Image.fromarray(COLOURS)
EXACT = {
    "RGB": (saved(PLAIN, "PNG"), COLOURS),
    "grey": (saved(Image.fromarray(GREYS), "PNG"), GREYS),
    "grey and alpha": (saved(Image.fromarray(GREYS).convert("LA"), "PNG"), GREYS),
    "RGBA": (saved(PLAIN.convert("RGBA"), "PNG"), COLOURS),
    "black and white": (saved(Image.fromarray(GREYS > 99), "PNG"), np.where(GREYS > 99, 255, 0)),
    "palette": (saved(PLAIN.quantize(9), "PNG"), np.asarray(PLAIN.quantize(9).convert("RGB"))),
    "CMYK": (saved(PLAIN.convert("CMYK"), "TIFF"), COLOURS),
    "16 bits of grey, PNG": (saved(Image.fromarray(GREYS.astype(np.uint16) * 257), "PNG"), GREYS),
    "16 bits of grey, TIFF": (saved(Image.fromarray(GREYS.astype(np.uint16) * 257), "TIFF"), GREYS),
    "16 bits of RGB": (png(COLOURS.astype(np.uint16) * 257, 2), COLOURS),
    "16 bits of RGBA": (png(np.dstack([COLOURS, np.full_like(GREYS, 255)]).astype(np.uint16) * 257, 6), COLOURS),
}


@pytest.mark.parametrize("kind", EXACT)
def test_pictures_of_every_kind_come_out_as_their_pixels(kind: str) -> None:
    content, expected = EXACT[kind]
    np.testing.assert_array_equal(pixels(decoded(content, None)), expected)
    assert glanced(content)[1] == (expected.ndim == 2)


def test_an_inverted_cmyk_photograph_is_not_read_as_its_negative() -> None:
    """Adobe writes them so, and so does Pillow. JPEG is not exact: within 3 of 255 on a plain colour."""
    content = saved(Image.new("RGB", (16, 16), (200, 30, 90)).convert("CMYK"), "JPEG")
    difference = np.abs(pixels(decoded(content, None)).astype(int) - (200, 30, 90))
    assert difference.max() <= 3


def test_a_transparent_colour_of_a_palette_is_put_on_white() -> None:
    palette = PLAIN.quantize(9)
    picture = decoded(saved(palette, "PNG", transparency=palette.getpixel((0, 0))), None)
    assert (pixels(picture)[0, 0] == 255).all()
    assert picture.remarks == ("with transparent pixels, put on white",)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_and_mirrored_as_their_exif_says(orientation: int, kind: str) -> None:
    """How the camera was held: what undoes each orientation, as the EXIF standard has it."""
    ways = (
        lambda a: a,
        np.fliplr,
        lambda a: np.rot90(a, 2),
        np.flipud,
        lambda a: np.swapaxes(a, 0, 1),
        lambda a: np.rot90(a, -1),
        lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        np.rot90,
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(PLAIN, kind, exif=exif)
    as_stored = np.asarray(Image.open(io.BytesIO(saved(PLAIN, kind))))
    np.testing.assert_array_equal(pixels(decoded(content, None)), ways[orientation - 1](as_stored))


def test_exif_that_is_broken_does_not_matter() -> None:
    content = saved(PLAIN, "JPEG", exif=b"Exif\0\0" + bytes(range(40)))
    assert pixels(decoded(content, None)).shape == (24, 16, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow's, which the readers of data sets silence
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("AVIF", {}),
        ("PPM", {}),
        ("JPEG2000", {}),
        ("QOI", {}),
    ],
)
def test_what_is_cut_short_is_not_read(kind: str, options: dict[str, object], share: float) -> None:
    content = saved(PLAIN, kind, **options)
    assert decoded(content, None).pixels is not None
    cut = decoded(content[: int(share * len(content))], None)
    assert (cut.pixels, bool(cut.why_not)) == (None, True)


def test_numbers_of_which_nothing_says_what_is_white_are_not_read() -> None:
    deep = decoded(saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), None)
    assert (deep.pixels, deep.why_not) == (None, "32 bits a pixel, mode F; nothing says which value is white")


@pytest.mark.parametrize(
    ("size", "scaled", "box"),
    [
        (8, (8, 12), (0, 2, 8, 10)),
        ((8, 8), (8, 12), (0, 2, 8, 10)),
        ((6, 8), (8, 12), (0, 3, 8, 9)),
        ((12, 4), (8, 12), (2, 0, 6, 12)),
        ((48, 16), (32, 48), (8, 0, 24, 48)),
        ((7, 16), (16, 24), (0, 8, 16, 15)),  # the half of 17 is rounded to the even side
    ],
)
def test_an_image_is_scaled_until_it_covers_the_size_and_the_middle_is_cut_out(
    size: int | tuple[int, int], scaled: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    """Of 16 x 24 (width x height); scaled is (width, height), box (left, upper, right, lower)."""
    expected = PLAIN.resize(scaled, Image.Resampling.BILINEAR).crop(box)
    np.testing.assert_array_equal(np.asarray(fitted(PLAIN, size)), np.asarray(expected))


def test_a_picture_too_narrow_to_be_scaled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^1x60000 is too narrow for task.image_size \[100, 200\]$"):
        fitted(Image.new("L", (1, 60_000)), (100, 200))
