"""What users need to test their own flows and calls; docs/testing.md shows it.

`run_inline` runs a flow in this process, without a database. With one, `temporary_database` makes it, `FakeLLM`
plays all providers, `drain` waits until nothing can run any more, and `advance` lets time pass.
"""

from pgnexus.testing.clock import advance
from pgnexus.testing.drain import Idle, drain
from pgnexus.testing.fake_llm import Call, FakeLLM
from pgnexus.testing.inline import InlineRun, run_inline
from pgnexus.testing.temporary_database import temporary_database

__all__ = ["Call", "FakeLLM", "Idle", "InlineRun", "advance", "drain", "run_inline", "temporary_database"]
