"""What users did, as the contract's feedback rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from mtf.contracts import feedback_schema
from mtf.spec import FusionSpec
from mtf.world.cohort import Feedback


def feedback_rows(spec: FusionSpec, request_ids: pa.Array, feedback: Feedback) -> pa.Table:
    """One row an impression, in the contract's columns without `received_at`, which is the server's clock.

    request_ids: string [n], the requests' ids in the order of `feedback`.
    """
    n, shown = feedback.item_ids.shape
    duration = feedback.duration_s.reshape(-1)
    columns = {
        "request_id": request_ids.take(pa.array(np.repeat(np.arange(n), shown))),
        "item_id": pa.array(feedback.item_ids.reshape(-1), pa.int64()),
        "position": pa.array(np.tile(np.arange(shown, dtype=np.int32), n)),
        "ts": pa.array(feedback.ts_us.reshape(-1), pa.timestamp("us", tz="UTC")),
        "watch_s": pa.array(feedback.watch_s.reshape(-1).astype(np.float32)),
        "duration_s": pa.array(duration.astype(np.float32), mask=np.isnan(duration)),
    }
    for name in spec.behaviours:
        if name != "watch":
            columns[name] = pa.array(getattr(feedback, name).reshape(-1).astype(np.int8))
    schema = pa.schema([f for f in feedback_schema(spec.behaviours) if f.name != "received_at"])
    return pa.table([columns[f.name] for f in schema], schema=schema)
