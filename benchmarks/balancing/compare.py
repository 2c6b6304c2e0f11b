"""Trains every contender with every seed on what prepare.py made, and keeps each run's figures as a small JSON file.

    python benchmarks/balancing/compare.py OUT RESULTS [--seed N]... [--jobs 2] [--only NAME]... [--lora] [--steps 160]

A run whose file is in RESULTS is not made again, so that a comparison can be stopped and gone on with. A balancer
measures every task every 5 steps, since a run is short: 32 measurements of a task, as many as 1,920 steps of six tasks
make at the defaults. Checkpoints are validated and kept at 8 places of a run; the test split is measured on those only
that a rule would choose: the last, the best by mean and by worst task, and the best for each task.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

PLACES, PATIENCE = 8, 3
RUN = {
    "global_batch_size": 8, "micro_batch_size": 8, "warmup_steps": 20, "weight_decay": 0.01, "keep_last": 0,
    "trackers": [],
}  # fmt: skip
FULL = {"method": "full", "learning_rate": 1e-3, "min_learning_rate": 1e-4}
LORA = {"method": "lora", "learning_rate": 5e-4, "min_learning_rate": 5e-5}
BY_SIZE = {"loss": {"reduction": "token_mean"}}
EQUAL = {"mixture_exponent": 0.0}
PROBES = {"balancer_interval": 5, "probe_rows": 4, "probe_tasks": None}
BALANCERS = ("coba", "self_paced", "famo", "focal")
SHORT = {"coba": {"history_length": 8}, "self_paced": {"history_length": 8}}


def balanced(name):
    """The loss section of a balancer."""
    return {"loss": {"balancer": name} | PROBES | ({name: SHORT[name]} if name in SHORT else {})}


CONTENDERS = {
    "by size": BY_SIZE,
    "by size, task_mean": {},
    "exponent 0.7": {"mixture_exponent": 0.7},
    "square root": {"mixture_exponent": 0.5},
    "exponent 0.3": {"mixture_exponent": 0.3},
    "equal": EQUAL,
    "equal, 20 repetitions": EQUAL | {"max_repetitions": 20.0},
    "expected counts": {"loss": {"task_counts": "expected"}},
    **{name: EQUAL | balanced(name) for name in BALANCERS},
    **{f"square root, {name}": {"mixture_exponent": 0.5} | balanced(name) for name in BALANCERS},
}
ALONE, EXCLUDING = "alone: ", "equal, excluding"
# By how much a cosine of one between gradients makes a task's share grow, in the exponent, after each of four stages.
STAGES, ALIGNED = 4, {"equal, four stages": 0.0, "equal, aligned": 2.0}


@dataclass(frozen=True)
class Setting:
    """What all contenders have in common: the folder that prepare.py made, its tasks, steps and settings of a run."""

    out: Path
    tasks: tuple[str, ...]
    steps: int
    run: dict


def lasting(steps, places):
    """Settings of a run of so many steps that is validated and kept so often."""
    return {"max_steps": steps, "validation_interval": steps // places, "checkpoint_interval": steps // places}


def contenders(setting):
    """Every contender's settings; a task alone has the rows that equal shares give it."""
    tasks = setting.tasks
    alone = {
        f"{ALONE}{task}": {"mixture": {other: float(other == task) for other in tasks}, "warmup_steps": 5}
        | lasting(setting.steps // len(tasks), 5)
        for task in tasks
    }
    return CONTENDERS | alone | {name: {} for name in (EXCLUDING, *ALIGNED)}


def environment():
    """One thread for each run, if OMP_NUM_THREADS says nothing else, and no hub."""
    return {"OMP_NUM_THREADS": "1"} | os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def validations(run_dir):
    """{step: {task: loss}} of a run."""
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {event["global_step"]: event["task_losses"] for event in events if event["event"] == "validation"}


def mean(losses):
    return sum(losses.values()) / len(losses)


def best_step(curve, measure):
    """The step with the least measure of its validation losses; step 0 has no checkpoint."""
    return min((step for step in curve if step), key=lambda step: measure(curve[step]))


def stopped(curve):
    """The curve as early stopping ends it: PATIENCE validations in a row without a better mean."""
    kept, least, worse = {}, float("inf"), 0
    for step, losses in curve.items():
        kept[step] = losses
        worse = 0 if mean(losses) < least else worse + 1
        least = min(least, mean(losses))
        if worse == PATIENCE:
            break
    return kept


def rules(curve):
    """The checkpoint that each rule chooses: the last, the best by mean, by worst task, at an early stop; by task."""
    first = curve[min(curve)]
    shared = {
        "last": max(curve),
        "best mean": best_step(curve, mean),
        "best worst": best_step(curve, lambda losses: max(losses[task] / first[task] for task in losses)),
        "early stop": best_step(stopped(curve), mean),
    }
    return shared, {task: best_step(curve, lambda losses, task=task: losses[task]) for task in first}


def test_losses(out, run_dir, steps):
    """{step: {task: loss}} on the test split, of the checkpoints of these steps."""
    models = [checkpoint(run_dir, step) / "model" for step in steps]
    return dict(zip(steps, measured("test_losses.py", out / "test", *models), strict=True))


def measured(name, *arguments):
    """What a script beside this one finds."""
    command = ["python", Path(__file__).with_name(name), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
    return json.loads(done.stdout.splitlines()[-1])  # DeepSpeed logs to stdout


def checkpoint(run_dir, step):
    return run_dir / "checkpoints" / f"step-{step:08d}"


def train(setting, run_dir, seed, settings):
    """The validation curve of one run."""
    shutil.rmtree(run_dir, ignore_errors=True)
    out = setting.out
    places = {"model": str(out / "base"), "dataset": str(out / "dataset"), "output": str(run_dir), "seed": seed}
    config = run_dir.with_name(f"{run_dir.name}.yaml")
    config.parent.mkdir(exist_ok=True)
    config.write_text(yaml.safe_dump(setting.run | places | settings))
    done = subprocess.run(["mft-train", "launch", config], capture_output=True, text=True, env=environment())
    if done.returncode:
        raise SystemExit(done.stderr)
    return validations(run_dir)


def train_excluding(setting, run_dir, seed):
    """The curve of equal shares in which the task that overfits first is left out, time and again (arXiv:2603.21606).

    A stage trains the tasks left for what is left of the steps. The run goes back to the earliest of their best
    checkpoints, and on from there without that task; it ends with the stage in which all get better to the last.
    The rate goes on along the cosine; the optimizer and the order of rows start anew. `run_dir` gets the checkpoints of
    the path.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    left, begin, path, steps = list(setting.tasks), 0, {}, setting.steps
    while True:
        shares = {task: float(task in left) for task in setting.tasks}
        curve = train_stage(setting, run_dir, seed, begin, {"mixture": shares, "max_steps": steps - begin})
        best = {task: best_step(curve, lambda losses, task=task: losses[task]) for task in left}
        first = min(left, key=best.__getitem__)
        end = steps - begin if len(left) == 1 else best[first]
        path |= go_on(run_dir, begin, {step: losses for step, losses in curve.items() if step <= end})
        begin += end
        left.remove(first)
        if begin == steps:
            return path


def stage_dir(run_dir):
    """Where a stage of a run is trained."""
    return run_dir.with_name(f"{run_dir.name}.stage")


def model_at(setting, run_dir, step):
    """The model after so many steps of a run."""
    return checkpoint(run_dir, step) / "model" if step else setting.out / "base"


def train_stage(setting, run_dir, seed, begin, settings):
    """The curve of a stage that goes on from step `begin`, by its own count of steps, with rows in an order anew."""
    own = {"model": str(model_at(setting, run_dir, begin)), "learning_rate": rate(setting, begin)}
    if begin:
        own["warmup_steps"] = 5
    return train(setting, stage_dir(run_dir), seed + 1000 * begin, own | settings)


def go_on(run_dir, begin, curve):
    """Makes what a stage's curve holds a part of the run; the curve with the steps of the whole run."""
    stage = stage_dir(run_dir)
    checkpoint(run_dir, 0).parent.mkdir(parents=True, exist_ok=True)
    for step in filter(None, curve):
        checkpoint(stage, step).rename(checkpoint(run_dir, begin + step))
    shutil.rmtree(stage)
    return {begin + step: losses for step, losses in curve.items() if step or not begin}


def train_aligned(setting, run_dir, seed, strength):
    """The curve and the last shares of a run in stages; between them, shares follow gradients (arXiv:2410.02498).

    A task's share is multiplied by the exponential of `strength` times the cosine between its gradient and the sum of
    all tasks' validation gradients. The rate goes along the cosine of a whole run, and the optimizer starts anew.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    shares, path, length = dict.fromkeys(setting.tasks, 1.0), {}, setting.steps // STAGES
    for begin in range(0, setting.steps, length):
        if begin and strength:
            cosines = measured("alignments.py", setting.out / "dataset", model_at(setting, run_dir, begin))
            shares = {task: share * math.exp(strength * cosines[task]) for task, share in shares.items()}
            shares = {task: share / sum(shares.values()) for task, share in shares.items()}
        settings = {"mixture": shares, "max_steps": length, "min_learning_rate": rate(setting, begin + length)}
        path |= go_on(run_dir, begin, train_stage(setting, run_dir, seed, begin, settings))
    return path, shares


def rate(setting, step):
    """The peak rate of a stage that begins at this step: that of the whole run's cosine, without its warm-up."""
    least, most = setting.run["min_learning_rate"], setting.run["learning_rate"]
    return least + (most - least) * (1 + math.cos(math.pi * step / setting.steps)) / 2


def make_run(setting, results, name, seed):
    """One run, its test losses, its file; the run directory is deleted."""
    target = results / f"{name.replace(': ', '-').replace(', ', '-').replace(' ', '-')}.{seed}.json"
    if target.exists():
        return
    run_dir, settings = setting.out / "runs" / target.stem, contenders(setting)[name]
    if name in ALIGNED:
        curve, shares = train_aligned(setting, run_dir, seed, ALIGNED[name])
        settings = {"strength": ALIGNED[name], "last_shares": shares}
    elif name == EXCLUDING:
        curve = train_excluding(setting, run_dir, seed)
    else:
        curve = train(setting, run_dir, seed, settings)
    document = {"contender": name, "seed": seed, "settings": settings, "validation": curve}
    shared, own = rules(curve)
    document["test"] = test_losses(setting.out, run_dir, sorted({*shared.values(), *own.values()}))
    target.write_text(json.dumps(document, indent=1) + "\n")
    shutil.rmtree(run_dir)
    print(target.name, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seed", type=int, action="append", help="0 to 4 when none is given")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--lora", action="store_true", help="train adapters")
    parser.add_argument("--steps", type=int, default=160)
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((arguments.out / "dataset" / "manifest.json").read_text())
    run = RUN | (LORA if arguments.lora else FULL) | lasting(arguments.steps, PLACES)
    setting = Setting(arguments.out, tuple(task["name"] for task in manifest["tasks"]), arguments.steps, run)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [
            pool.submit(make_run, setting, arguments.results, name, seed)
            for seed in arguments.seed or range(5)
            for name in contenders(setting)
            if not arguments.only or name in arguments.only
        ]
        for each in runs:
            each.result()


if __name__ == "__main__":
    main()
