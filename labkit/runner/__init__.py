"""Run labs headlessly: check the request, execute with papermill, collect results, write pages.

catalog (which labs, which parameters) -> request (checked jobs) -> execute (one process per lab, `child`) -> collect
(results and guards) -> pages, index (HTML) and store (`results.json`); `run` ties them together.
"""

from labkit.runner.catalog import find_labs
from labkit.runner.progress import Progress
from labkit.runner.request import parse_parameters
from labkit.runner.run import run_lab, run_labs
from labkit.runner.store import LabRun, read_results

__all__ = ["LabRun", "Progress", "find_labs", "parse_parameters", "read_results", "run_lab", "run_labs"]
