"""`rtp-llm verify`: a checkpoint's results beside those of its authors' code, and beside published numbers.

`verify(config, options)` gives a Report. Our engine answers every sample first and is let go, so that ours and theirs
are never held at once. The authors' libraries are imported only where they are used, and none of them is needed: what
is not installed is not compared, and the report says so.
"""

from rtp_llm.verify.comparison import Options, verify
from rtp_llm.verify.outcome import Report, Verdict

__all__ = ["Options", "Report", "Verdict", "verify"]
