"""The experiments of Aux-NAS and MTL-NAS on NYU v2, Cityscapes and Taskonomy.

python examples/papers/train.py --data nyuv2 --root DIR --backbone vit_base --primary normals --aux segmentation \
    --method aux-nas --from-checkpoints runs/nyuv2-vit_base/single-task-normals-0.pt \
    runs/nyuv2-vit_base/single-task-segmentation-0.pt
torchrun --nproc-per-node 4 examples/papers/train.py ...  # in several processes
python examples/papers/train.py --table --out runs        # a table of all runs in a folder
python examples/papers/train.py --smoke                   # everything, on made files, for two steps each
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

from backbones import BACKBONES
from experiment import Experiment
from images import DATA
from made_files import MAKERS
from methods import METHODS, SHARED, SINGLE
from report import print_table
from torch import distributed


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA)
    parser.add_argument("--root", type=Path, help="folder of the data set; an error says what has to be in it")
    parser.add_argument("--backbone", choices=BACKBONES, default="vit_base")
    parser.add_argument("--primary", help="the task of the network that is deployed")
    parser.add_argument("--aux", help="the other task")
    parser.add_argument("--method", choices=[SINGLE, SHARED, *METHODS], default=SINGLE)
    parser.add_argument(
        "--from-checkpoints", nargs=2, type=Path, metavar=("PRIMARY", "AUX"), help="of single-task runs"
    )
    parser.add_argument("--random", action="store_true", help="random weights, none from ImageNet")
    parser.add_argument("--epochs", type=int, help="by default as the papers have it")
    parser.add_argument("--batch", type=int, help="images in a step of each process; by default as the papers have it")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of training images that choose the epoch")
    parser.add_argument(
        "--test-each-epoch", action="store_true", help="the best epoch on test too, as the papers have it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off")
    parser.add_argument("--compile", action="store_true", help="compile the layers between which edges run")
    parser.add_argument("--workers", type=int, default=4, help="processes that load images")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of checkpoints, results and scalars")
    parser.add_argument("--resume", action="store_true", help="go on after the last epoch that was saved")
    parser.add_argument("--small", action="store_true", help="narrow networks, to try code")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(words)
    if not (options.table or options.smoke):
        check(parser, options)
    return options


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """All that is missing or does not go together, in one message."""
    tasks = DATA[options.data].TASKS if options.data else {}
    joined = options.method != SINGLE
    problems = [f"--{name} is missing" for name in ("data", "root", "primary") if not getattr(options, name)]
    problems += [
        f"--{name} {value}: {options.data} has {', '.join(tasks)}"
        for name in ("primary", "aux")
        if tasks and (value := getattr(options, name)) and value not in tasks
    ]
    if joined and (not options.aux or options.aux == options.primary):
        problems.append(f"--method {options.method} needs --aux, another task than --primary")
    if joined and options.method in METHODS and METHODS[options.method].warm and not options.from_checkpoints:
        problems.append(
            f"--method {options.method} starts from two single-task networks: --from-checkpoints PRIMARY.pt AUX.pt, "
            f"which the same command writes with --method {SINGLE}, for each task as its --primary"
        )
    if problems:
        parser.error("\n  ".join(["", *problems]))


def smoke(out: Path) -> None:
    """Every data set, backbone and method, end to end on made files; checks what is exported."""
    for data, make in MAKERS.items():
        root = out / "data" / data
        make(root)
        first, second = list(DATA[data].TASKS)[:2]
        for backbone, method in itertools.product(BACKBONES, (SINGLE, SHARED, *METHODS)):
            common = ["--data", data, "--root", str(root), "--backbone", backbone, "--random", "--small"]
            common += ["--epochs", "1", "--batch", "2", "--workers", "0", "--out", str(out)]
            both = [first, second] if method == SINGLE else [first]
            for primary in both:
                words = [*common, "--primary", primary, "--method", method]
                if method != SINGLE:
                    words += ["--aux", second]
                if method in METHODS and METHODS[method].warm:
                    checkpoints = [out / f"{data}-{backbone}" / f"{SINGLE}-{task}-0.pt" for task in (first, second)]
                    words += ["--from-checkpoints", *map(str, checkpoints)]
                Experiment(parse(words)).run()
    print_table(out)


def main(options: Any) -> None:
    """What the command line asks for."""
    if options.table:
        return print_table(options.out)
    if options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            return smoke(Path(folder))
    try:
        Experiment(options).run()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main(parse())
