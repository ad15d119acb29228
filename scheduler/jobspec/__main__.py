"""Prints the JSON Schema of the job file: `python -m scheduler.jobspec > job.schema.json`."""

import json
import sys

from scheduler.jobspec import job_schema

sys.stdout.write(json.dumps(job_schema(), indent=2) + "\n")
