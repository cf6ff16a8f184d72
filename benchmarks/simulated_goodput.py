"""What is answered in time under too much load, in virtual time: `python -m benchmarks.simulated_goodput`.

The real scheduler and gate against a model of two cores (benchmarks.simulator): requests come as they please (Poisson)
at some multiples of what full steps can do, each with a deadline. Told is what is answered in time, of what could be:
of all that comes, or of the capacity where more comes than that.
"""

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from benchmarks import report
from benchmarks.capacity import Traffic, spread
from benchmarks.simulator import Arrival, Costs, Result, simulate
from rtp_llm.config import EngineConfig
from rtp_llm.engine.gate import Gate
from rtp_llm.engine.scheduler import Scheduler

CORES = 2
BATCH_TOKENS = 1024
LOADS = (0.5, 1.0, 1.5, 2.0, 4.0)
PATIENCE = (0.1, 0.3, 1.0, 5.0)
MIXED = (0.1, 0.3, 1.0, 5.0)
MINILM = Costs(gain=0.7)
# A full step takes 3 s on a core, a lone query 30 ms on two.
BGE_M3 = Costs(fixed=2.5e-2, per_token=3e-3, per_square=3e-7, gain=0.9)
MODELS = {"MiniLM": MINILM, "bge-m3": BGE_M3}
LENGTHS = {"queries": (4, 20), "passages": (20, 250)}
_LEAST_REQUESTS = 1500
_NOISE = 0.1


class Goodput(NamedTuple):
    """Of the requests of a run: how many were answered in time, too late, refused at once, and shed.

    share  tokens that were answered in time, of those that could have been, by load and capacity alone: requests of few
           tokens are in time more often, so that of requests it would be more
    """

    share: float
    in_time: int
    late: int
    refused: int
    shed: int


@dataclass(frozen=True)
class Overload:
    """Requests of `num_texts` texts each at `load` times the capacity, whose deadlines are drawn from `patience`."""

    costs: Costs
    lengths: tuple[int, int]
    load: float
    patience: Sequence[float]
    num_texts: int = 1
    noise: float = _NOISE

    @property
    def capacity(self) -> float:
        """Requests a second of full steps."""
        return Traffic(spread(self.num_texts, self.lengths), BATCH_TOKENS, CORES, self.costs).most / self.num_texts

    def run(self) -> Goodput:
        """As long as ten of the longest deadlines, and as many requests as it takes to tell."""
        rate = self.capacity * self.load
        seconds = max(_LEAST_REQUESTS / rate, 10 * max(self.patience))
        result = self.simulate(rate, seconds)
        could = min(rate, self.capacity) * seconds * self.num_texts * sum(self.lengths) / 2
        tokens, in_time = sum(answer.num_tokens for answer in result.in_time), len(result.in_time)
        return Goodput(tokens / could, in_time, len(result.answers) - in_time, result.refused, result.shed)

    def simulate(self, rate: float, seconds: float, gate: Gate | None = None) -> Result:
        """So many requests a second for so long, with a gate that knows nothing yet, or the given one."""
        rng, now, arrivals = random.Random(0), 0.0, list[Arrival]()
        while (now := now + rng.expovariate(rate)) < seconds:
            lengths = [rng.randint(*self.lengths) for _ in range(self.num_texts)]
            arrivals.append(Arrival(now, lengths, patience=rng.choice(self.patience)))
        return simulate(Scheduler(BATCH_TOKENS, CORES), arrivals, self.costs, gate or make_gate(), self.noise)


def make_gate(num_cores: int = CORES) -> Gate:
    """As a server has it that is told nothing else."""
    return Gate(EngineConfig(checkpoint_path="x"), num_cores, BATCH_TOKENS)


def overloads() -> dict[tuple[str, str], Overload]:
    """By model and traffic; the load is still to be said."""
    cases = {}
    for model, costs in MODELS.items():
        for traffic, lengths in LENGTHS.items():
            for patience in (*PATIENCE, math.nan):
                several = MIXED if math.isnan(patience) else (patience,)
                name = "mixed" if math.isnan(patience) else f"{patience:g} s"
                cases[model, f"{traffic}, {name}"] = Overload(costs, lengths, 1.0, several)
        patience = 1.0 if model == "MiniLM" else 10.0
        cases[model, f"8 passages, {patience:g} s"] = Overload(
            costs, LENGTHS["passages"], 1.0, (patience,), num_texts=8
        )
    return cases


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulated_goodput", description=__doc__)
    parser.add_argument("--json", default="", help="also write the JSON line to this file")
    arguments = parser.parse_args(argv)
    rows, results = [], {}
    for (model, traffic), case in overloads().items():
        seen = {load: replace(case, load=load).run() for load in LOADS}
        rows.append([model, traffic, *(_shown(goodput) for goodput in seen.values())])
        results[f"{model}, {traffic}"] = {load: goodput._asdict() for load, goodput in seen.items()}
    print("in time of what could be (refused / shed / late, of all)")
    print(report.table(("", "", *(f"{load:g} x capacity" for load in LOADS)), rows))
    report.finish({"benchmark": "simulated_goodput", "results": results}, arguments.json)


def _shown(goodput: Goodput) -> str:
    count = sum(goodput[1:])
    others = "/".join(f"{part / count:.0%}" for part in (goodput.refused, goodput.shed, goodput.late))
    return f"{goodput.share:.2f} ({others})"


if __name__ == "__main__":
    main()
