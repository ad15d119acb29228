"""The job file: what people write, checked and turned into a `model.JobSpec`.

`reader` turns YAML or JSON text into plain data and remembers where everything stood; `document`
is the schema; `parse` joins the two and words the problems.
"""

from scheduler.jobspec.document import API_VERSION, KIND
from scheduler.jobspec.parse import job_schema, parse_job_json, parse_job_yaml, placed_in

__all__ = ["API_VERSION", "KIND", "job_schema", "parse_job_json", "parse_job_yaml", "placed_in"]
