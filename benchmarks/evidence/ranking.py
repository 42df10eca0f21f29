"""Which auxiliary, before training? Short probes of candidates against what each gives when it is trained with.

python benchmarks/evidence/ranking.py          # runs what docs/results/ranking.json lacks, then prints the tables
python benchmarks/evidence/ranking.py --table  # prints the tables of what is there

A probe trains the primary with a light auxiliary for a quarter of the steps and measures three scores. *Cosine*: of the
auxiliary's gradient and that of the primary's held-out loss, mean. *Fisher*: the distance of task affinity, negative
(arXiv 2103.12827: Frechet distance of diagonal Fisher matrices of trace 1), of both tasks in the weights they share.
*Held-out loss*: by how much the probe's is below that of the primary trained alone for as many steps.
"""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import mean
from typing import Any

import torch
from candidates import CANDIDATES, PERMUTED
from methods import LIGHT, METHODS, NEVER_STOPPED, SINGLE, Method
from problem import Batch, Problem
from scipy.stats import spearmanr
from study import Run, interval, read_options, run_missing
from tables import show
from torch import Tensor, nn
from training import Regime, RuleWatch, Settings, Training, choose, evaluate, fit
from variants import UNSTOPPED, VARIANTS

FEW = Regime(100, plenty=True)
SETTINGS = {"depth": Settings(3e-3, 0.01, 600, 1.0), "CD4 at 96 weeks": Settings(3e-3, 0.1, 300, 1.0)}
PROBE = 4  # a probe has one in so many of the steps
SAMPLES = 64  # from which a Fisher matrix is estimated
ALONE = "alone"
FAST = False  # for tests: made-up samples
ELSEWHERE = "same_groups"  # cosines with held-out samples of the groups that are trained on
SCORES = {
    "cosine": "cosine",
    "fisher": "Fisher",
    "held_out": "held-out loss",
    ELSEWHERE: "cosine, same levels or patients",
}
PROBED, JOINED = replace(METHODS[LIGHT], **NEVER_STOPPED), VARIANTS[UNSTOPPED]


def run(task: Run) -> Run:
    """The error of a whole training, or the scores of a probe."""
    primary, candidate, seed = task["primary"], task["candidate"], task["seed"]
    problems, settings = CANDIDATES[primary], SETTINGS[primary]
    is_alone = candidate == ALONE
    problem = next(iter(problems.values())) if is_alone else problems[candidate]
    data = problem.load(FAST)
    method = METHODS[SINGLE] if is_alone else JOINED if task["kind"] == "gain" else PROBED
    if task["kind"] == "gain":
        model = fit(problem, method, data["train"], FEW, settings, seed)
        return {"error": evaluate(problem, method.export(model), data["test"])}
    return probe(problem, method, data, replace(settings, steps=settings.steps // PROBE), seed)


def probe(problem: Problem, method: Method, data: dict[str, Batch], settings: Settings, seed: int) -> Run:
    """The scores of a short training; of the primary alone the held-out loss, which has no sign yet."""
    watches = {} if method is METHODS[SINGLE] else rules(problem, data, seed)

    def watch(progress: float, model: Any, batch: Batch) -> None:
        for rule in watches.values():
            rule(progress, model, batch)

    model = fit(problem, method, data["train"], FEW, settings, seed, watch)
    found: Run = {
        "held_out": Training(problem, method, model, 1.0, None, data["validation"]).held_out_loss(
            deepcopy(model.primary_net)
        )
    }
    for name, rule in watches.items():
        found[name] = mean(value for values in rule.rule.alignment.cosines.values() for value in values)
    return found | ({"fisher": -distance(problem, model, data, seed)} if watches else {})


def rules(problem: Problem, data: dict[str, Batch], seed: int) -> dict[str, RuleWatch]:
    """Measurements with held-out samples of other groups, and of those that are trained on."""
    whole, labelled = choose(problem, data["train"], FEW, seed)
    known = ~whole["primary"].flatten(1).isnan().any(1)
    known[labelled] = False
    same = {key: values[known] for key, values in whole.items()}
    options = {"until": 1.0, "explains": None}
    return {
        "cosine": RuleWatch(problem, data["validation"], **options),
        ELSEWHERE: RuleWatch(problem, same, **options),
    }


def distance(problem: Problem, model: Any, data: dict[str, Batch], seed: int) -> float:
    """Of task affinity, in [0, 1]; 0: both losses are sensitive to the same weights of the primary."""
    whole, labelled = choose(problem, data["train"], FEW, seed)
    (name, aux), batch = next(iter(problem.auxes.items())), {key: v[labelled[:SAMPLES]] for key, v in whole.items()}
    weights = list(model.primary_net.parameters())
    model.eval()

    def loss(number: int, sample: Batch) -> Tensor:
        output, outputs = model(sample["input"])
        return aux.loss(outputs[name], sample[name]) if number else problem.loss(output, sample["primary"])

    reached = torch.autograd.grad(loss(1, batch), weights, allow_unused=True)
    shared = [weight for weight, gradient in zip(weights, reached) if gradient is not None]
    return affinity([fisher(shared, partial(loss, number), batch) for number in (0, 1)])


def fisher(weights: list[nn.Parameter], loss: Any, batch: Batch) -> Tensor:
    """Mean square of a loss's gradients of single samples: the diagonal of the empirical Fisher matrix."""
    total = torch.zeros(sum(w.numel() for w in weights))
    for number in range(len(batch["input"])):
        sample = {key: values[number : number + 1] for key, values in batch.items()}
        found = torch.autograd.grad(loss(sample), weights, allow_unused=True, materialize_grads=True)
        total += torch.cat([gradient.flatten() for gradient in found]).square()
    return total / len(batch["input"])


def affinity(diagonals: list[Tensor]) -> float:
    """The Frechet distance of two diagonal matrices, each scaled to trace 1."""
    one, other = ((d / d.sum().clamp(min=torch.finfo(d.dtype).tiny)).sqrt() for d in diagonals)
    return ((one - other).norm() / 2**0.5).item()


def print_tables(results: list[Run]) -> None:
    """Gains and scores of each candidate, then how well each score ranks the gains."""
    for primary, problems in CANDIDATES.items():
        here = [result for result in results if result["primary"] == primary]
        at = {(r["kind"], r["candidate"], r["seed"]): r for r in here}
        seeds = sorted(
            {seed for _, _, seed in at if all((k, c, seed) in at for k in KINDS for c in (*problems, ALONE))}
        )
        if len(seeds) < 2:
            continue
        gains = {
            c: [100 * (at["gain", c, s]["error"] / at["gain", ALONE, s]["error"] - 1) for s in seeds] for c in problems
        }
        scores = {c: [measured(at, c, s) for s in seeds] for c in problems}
        order = sorted(problems, key=lambda c: mean(gains[c]))
        rows = [
            (c, f"{interval(gains[c])} %", *(f"{mean(s[n] for s in scores[c]):+.3f}" for n in SCORES)) for c in order
        ]
        head = f"candidate beside {primary}", "error minus that alone", *SCORES.values()
        show(head, rows, f"{len(seeds)} seeds")
        head = "score", "rank correlation with the gains", "place of permuted labels"
        show(head, ranks(order, gains, scores))


KINDS = "gain", "probe"


def measured(at: dict[Any, Run], candidate: str, seed: int) -> Run:
    """The scores of a probe, higher for what should help more."""
    found, alone = at["probe", candidate, seed], at["probe", ALONE, seed]
    return found | {"held_out": alone["held_out"] - found["held_out"]}


def ranks(order: list[str], gains: Any, scores: Any) -> list[tuple[str, str, str]]:
    """Of each score Spearman's correlation, each seed by itself; and where it puts permuted labels."""
    helped = [-mean(gains[c]) for c in order]
    rows = []
    for name, title in SCORES.items():
        by_seed = [[scores[c][i][name] for c in order] for i in range(len(gains[order[0]]))]
        found = [spearmanr(helped, values).statistic for values in by_seed]
        average = {c: mean(s[name] for s in scores[c]) for c in order}
        place = next(i for i, c in enumerate(sorted(order, key=average.__getitem__, reverse=True), 1) if c in PERMUTED)
        rows.append((title, interval(found, 2), f"{place} of {len(order)}"))
    return rows


def main() -> None:
    """Run what is missing, and print the tables."""
    options = read_options(__doc__, "ranking.json")
    tasks = [
        {"primary": primary, "kind": kind, "candidate": candidate, "seed": seed}
        for primary, problems in reversed(CANDIDATES.items())
        for seed, kind, candidate in product(range(options.seeds), KINDS, (ALONE, *problems))
    ]
    print_tables(run_missing(options.results, [] if options.table else tasks, run))


if __name__ == "__main__":
    main()
