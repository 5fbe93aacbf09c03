"""A picture in at most 256 colours: pages have few, and a file in a repository is downloaded by everybody."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

COLOURS = 256
_PIXELS = """async (data) => {
  const picture = await createImageBitmap(await (await fetch(`data:image/png;base64,${data}`)).blob());
  const context = new OffscreenCanvas(picture.width, picture.height).getContext("2d");
  context.drawImage(picture, 0, 0);
  const bytes = context.getImageData(0, 0, picture.width, picture.height).data;
  const url = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(new Blob([bytes]));
  });
  return [picture.width, picture.height, url.split(",")[1]];
}"""


def smaller(blank: Any, png: bytes) -> bytes:
    """The same picture with a palette; `blank` is a page of a browser, which can read PNG."""
    width, height, data = blank.evaluate(_PIXELS, base64.b64encode(png).decode())
    pixels = np.frombuffer(base64.b64decode(data), dtype=np.uint8).reshape(-1, 4)[:, :3].astype(np.int32)
    packed = pixels[:, 0] << 16 | pixels[:, 1] << 8 | pixels[:, 2]
    colours, where, count = np.unique(packed, return_inverse=True, return_counts=True)
    kept = colours[np.argsort(-count)[:COLOURS]]
    distance = ((_channels(colours)[:, None, :] - _channels(kept)[None, :, :]) ** 2).sum(axis=2)
    rows = distance.argmin(axis=1)[where].astype(np.uint8).reshape(height, width)
    # Each row begins with its filter: none.
    lines = np.hstack([np.zeros((height, 1), np.uint8), rows]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    palette = _channels(kept).astype(np.uint8).tobytes()
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*one) for one in chunks)


def _channels(packed: Any) -> Any:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
