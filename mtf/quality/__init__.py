"""Quality: suites of expectations, verdicts on days, quarantine, Data Docs."""

from mtf.quality.validate import validate_day
from mtf.quality.verdict import Check, Verdict, read_verdict

__all__ = ["Check", "Verdict", "read_verdict", "validate_day"]
