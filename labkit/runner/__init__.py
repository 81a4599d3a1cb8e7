"""Run labs headlessly: check the request, execute with papermill, collect results, write pages.

lab.catalog (which labs, which parameters) -> request (checked jobs) -> execute (a process per lab, `child`) -> collect
(results and guards) -> pages, gallery (HTML) and store (`results.json`); `run` ties them together. `drawn` makes
figures and widgets stand alone, `formulas` formulas; `serve` shows the folder on loopback.
"""

from labkit.lab.catalog import find_labs
from labkit.runner.progress import Progress
from labkit.runner.request import parse_parameters
from labkit.runner.run import run_lab, run_labs
from labkit.runner.store import LabRun, read_results

__all__ = ["LabRun", "Progress", "find_labs", "parse_parameters", "read_results", "run_lab", "run_labs"]
