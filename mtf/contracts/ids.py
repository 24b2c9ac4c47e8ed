"""UUIDv7 (RFC 9562) in event time: sortable, and the day of a request can be read off its id."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtf.errors import InputError

_SHAPE = r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
_TIME_DIGITS = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]


def uuid7(ts_us: np.ndarray, rng: np.random.Generator) -> list[str]:
    """One id an entry of `ts_us` (int64 [n], microseconds since 1970), its 74 random bits drawn from `rng`."""
    n = len(ts_us)
    raw = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    ms = (np.asarray(ts_us, np.int64) // 1000).astype(">u8").view(np.uint8).reshape(n, 8)
    raw[:, :6] = ms[:, 2:]
    raw[:, 6] = (raw[:, 6] & 0x0F) | 0x70
    raw[:, 8] = (raw[:, 8] & 0x3F) | 0x80
    text = raw.tobytes().hex()
    return [
        f"{text[i : i + 8]}-{text[i + 8 : i + 12]}-{text[i + 12 : i + 16]}-{text[i + 16 : i + 20]}-{text[i + 20 : i + 32]}"
        for i in range(0, 32 * n, 32)
    ]


def milliseconds(request_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Event times int64 [n] of ids, in milliseconds since 1970. Raises InputError on what is no UUIDv7 in lower case."""
    ids = request_ids.combine_chunks() if isinstance(request_ids, pa.ChunkedArray) else request_ids
    ids = ids.cast(pa.string())
    valid = pc.fill_null(pc.match_substring_regex(ids, _SHAPE), False)
    if not pc.all(valid, min_count=0).as_py():
        wrong = ids.filter(pc.invert(valid))[0].as_py()
        raise InputError(f"request_id = {wrong!r}: not a UUIDv7 in lower case; send the id that the server answered")
    if len(ids) == 0:
        return np.empty(0, np.int64)
    _, offsets, data = ids.buffers()
    first = int(np.frombuffer(offsets, np.int32)[ids.offset])
    text = np.frombuffer(data, np.uint8)[first : first + 36 * len(ids)]
    digits = text.reshape(-1, 36)[:, _TIME_DIGITS].astype(np.int64)
    digits = np.where(digits >= ord("a"), digits - ord("a") + 10, digits - ord("0"))
    return digits @ (16 ** np.arange(11, -1, -1, dtype=np.int64))


def days(request_ids: pa.Array | pa.ChunkedArray) -> list[str]:
    """The UTC day YYYY-MM-DD of each id: feedback belongs to its request's day. Raises InputError as `milliseconds`."""
    found, row = np.unique(milliseconds(request_ids) // 86_400_000, return_inverse=True)
    names = found.astype("datetime64[D]").astype(str)
    return [str(d) for d in names[row]]
