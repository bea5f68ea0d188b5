"""One self-contained HTML page and one results.json per comparison, holding the same numbers."""

from audiolm_jax.compare.report.html import write_report
from audiolm_jax.compare.report.schema import meaningless, validate, write_results

__all__ = ["meaningless", "validate", "write_report", "write_results"]
