"""Multiple-choice cases with pictures: read, asked of a model or an endpoint, scored beside human readers."""

from tessera.evaluate.cases.endpoint import Endpoint
from tessera.evaluate.cases.human import readers
from tessera.evaluate.cases.parsing import parse
from tessera.evaluate.cases.reading import read_cases
from tessera.evaluate.cases.respondents import Loaded, Reply
from tessera.evaluate.cases.running import Plan, run
from tessera.evaluate.cases.schema import Case, CaseSet
from tessera.evaluate.cases.scoring import score

__all__ = ["Case", "CaseSet", "Endpoint", "Loaded", "Plan", "Reply", "parse", "read_cases", "readers", "run", "score"]
