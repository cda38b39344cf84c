"""The benchmark harness.

    python -m bench setup [RIVAL...] [--force]                            make the rivals' environments
    python -m bench kernels [--only WORD]... [--threads N]...             single products against the rivals
    python -m bench models [MODEL...] [--recipe R]... [--threads N]...    whole models against the rivals
    python -m bench roof                                                  read bandwidth and multiply-add peaks of this machine
    python -m bench isa [FAMILY...]                                       what is run of the instructions that --isa hides
    python -m bench gpu [--prepare DIR | --run DIR] [--only PRODUCT]...   products and MiniLM on an NVIDIA GPU against the rivals there
    python -m bench operators MODEL [--recipe R] [--threads N]            time of every step of a compiled model
    python -m bench accuracy [MODEL...] [--scheme S]... [--no-rivals]     what schemes cost in accuracy, beside the rivals
    python -m bench methods [zeros | codes | scope]...                    each algorithm of a recipe on the same schemes
    python -m bench recovery [--scheme S]... [--epochs N]                 what training on in the format gives back (ResNet-20)
    python -m bench scaling                                               what compression takes by depth and by workers
    python -m bench exactness [MODEL...] [--recipe R]... [--examples N]   task metrics of programs against the original model
    python -m bench compile [MODEL...] [--recipe R]...                    time of the compile command, cold and warm cache
    python -m bench instructions                                          instructions a multiplication on aarch64
    python -m bench size [MODEL...] [--recipe R]...                       code size, memory, compile and import time

Models are those of the zoo (default: every model whose data is there); `--json FILE` keeps the figures.
setup, kernels, models, operators and roof: `--isa avx2` takes the processor for one without AVX-512 and VNNI.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import isa
from bench.bars import BARS
from bench.environments import FAMILIES
from bench.zoo import MODELS, MissingData, get

JUDGED = tuple(dict.fromkeys(bar.model for bar in BARS))
TIMED = ("mobilenet_v2_random", "resnet50_random", "minilm")


def _available(names: Sequence[str]) -> list[str]:
    """The named models, or all whose data is present; says which are left out."""
    for name in names:
        if name not in MODELS:
            raise SystemExit(f"'{name}' is not in the zoo; it has: {', '.join(MODELS)}")
    found = []
    for name in names or MODELS:
        try:
            get(name)
        except (MissingData, ModuleNotFoundError) as missing:
            print(f"left out {name}: {missing}", file=sys.stderr)
        else:
            found.append(name)
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _add_isa(parser: argparse.ArgumentParser) -> None:
    choices = (isa.NATIVE, *isa.HOSTS)
    text = "what of this processor ours and the rivals may know (default: native, all of it)"
    parser.add_argument("--isa", choices=choices, default=isa.chosen(), help=text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text)
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
        return sub

    setup = commands.add_parser("setup", help="make the rivals' environments below the cache folder")
    setup.add_argument("rivals", nargs="*", metavar="RIVAL", help="default: all")
    setup.add_argument("--force", action="store_true", help="make them anew")
    _add_isa(setup)

    kernels = command("kernels", "time single products against the rivals")
    kernels.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help="gemv, small, gemm, fp32, sweep, or a product (repeatable)",
    )
    kernels.add_argument("--threads", action="append", type=int, help="thread count (repeatable; default: 1 and all)")
    kernels.add_argument("--rounds", type=int, default=9)
    kernels.add_argument(
        "--roof", type=Path, metavar="FILE", help="JSON of `bench roof` (default: this machine's cached rates)"
    )
    _add_isa(kernels)

    models = command("models", "time whole models against the rivals")
    models.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {', '.join(TIMED)}")
    models.add_argument(
        "--rival", action="append", default=[], choices=sorted(FAMILIES), help="only this one (repeatable)"
    )
    models.add_argument("--recipe", action="append", default=[], help="time this compression too (repeatable)")
    models.add_argument("--threads", action="append", type=int, help="thread count (repeatable; default: 1 and all)")
    models.add_argument("--rounds", type=int, default=9)
    _add_isa(models)

    _add_isa(
        command("roof", "read bandwidth of each memory level and multiply-add peaks of this machine, 1 thread and all")
    )

    check = command("isa", "which share of the instructions that candidates run is beyond AVX2, native and hidden")
    check.add_argument("families", nargs="*", metavar="FAMILY", help="sparsec or a rival (default: all)")

    command("instructions", "instructions a multiplication of int8 products on aarch64, from their assembly")

    gpu = command("gpu", "products on an NVIDIA GPU against cuBLAS, torch, bitsandbytes and Triton")
    gpu.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PRODUCT",
        help='such as "1 x 4096x4096", "minilm 1 x 128" (repeatable)',
    )
    where = gpu.add_mutually_exclusive_group()
    where.add_argument(
        "--prepare", type=Path, metavar="DIR", help="compile what is timed, for another machine; needs no GPU"
    )
    where.add_argument(
        "--run", type=Path, metavar="DIR", help="time what was prepared; needs numpy and a driver, torch for rivals"
    )
    gpu.add_argument("--resume", action="store_true", help="of --run: go on behind the rows in --json's file")
    gpu.add_argument("--arch", default="sm_90", help="of --prepare: the GPU's architecture (default: sm_90)")

    operators = command("operators", "time of every step of a compiled model")
    operators.add_argument("model", choices=sorted(MODELS), metavar="MODEL")
    operators.add_argument("--recipe")
    operators.add_argument("--threads", type=int, default=1)
    operators.add_argument("--top", type=int, default=25, help="steps to show")
    operators.add_argument("--rounds", type=int, default=9)
    _add_isa(operators)

    accuracy = command("accuracy", "what schemes cost in accuracy, beside the rivals")
    accuracy.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {', '.join(JUDGED)}")
    accuracy.add_argument(
        "--scheme", action="append", default=[], help="only rows of this scheme or recipe (repeatable)"
    )
    accuracy.add_argument("--no-rivals", action="store_true", help="ours alone, data-free and calibrated")
    accuracy.add_argument(
        "--calibrations", type=int, default=1, metavar="N", help="mean over N sets of calibration inputs (default: 1)"
    )

    methods = command("methods", "each algorithm of a recipe on the same schemes")
    methods.add_argument("tables", nargs="*", metavar="TABLE", help="zeros, codes, scope (default: all)")

    recovery = command("recovery", "what training on in the compressed format gives back")
    recovery.add_argument("--scheme", action="append", default=[], help="only this one (repeatable)")
    recovery.add_argument("--epochs", type=int, help="default: 20")

    command("scaling", "what compression takes as models get deeper, and with one or two Dask workers")

    exactness = command("exactness", "task metrics of compiled programs against the original model")
    exactness.add_argument("models", nargs="*", metavar="MODEL")
    exactness.add_argument("--recipe", action="append", default=[])
    exactness.add_argument("--examples", type=int, help="labelled examples to score (default: all)")

    compiling = command("compile", "time of the compile command, cold and with a warm cache")
    compiling.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {', '.join(TIMED)}")
    compiling.add_argument("--recipe", action="append", default=[], help="time this compression too (repeatable)")
    compiling.add_argument("--repeats", type=int, default=5, help="warm compiles (default: %(default)s)")

    size = command("size", "code size, memory, compile and import time")
    size.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {', '.join(TIMED)}")
    size.add_argument("--recipe", action="append", default=[])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 when something could not be measured or broke its limit."""
    args = _parser().parse_args(arguments)
    if "isa" in args:
        isa.choose(args.isa)
    if args.command == "setup":
        from bench import setup

        return setup.run(args.rivals, args.force)
    if args.command == "kernels":
        from bench import kernels

        threads = sorted(set(args.threads or (1, _cores())))
        return kernels.run(args.only, threads, args.rounds, args.roof, args.json)
    if args.command == "models":
        from bench import models

        threads = args.threads or sorted({1, _cores()})
        names = _available(args.models or TIMED)
        return models.run(names, args.recipe, sorted(set(threads)), args.rounds, args.rival, args.json)
    if args.command == "roof":
        from bench import roof

        return roof.run(args.json)
    if args.command == "isa":
        from bench import isa_check

        return isa_check.run(args.families, args.json)
    if args.command == "gpu":
        from bench import gpu

        if args.prepare is not None:
            return gpu.prepare(args.prepare, args.arch, args.only)
        return gpu.run(args.run, args.json, args.only, args.resume)
    if args.command == "instructions":
        from bench import instructions

        return instructions.run(args.json)
    if args.command == "operators":
        from bench import operators

        return operators.run(args.model, args.recipe, args.threads, args.top, args.rounds, args.json)
    if args.command == "methods":
        from bench import methods

        return methods.run(args.tables, args.json)
    if args.command == "recovery":
        from bench import recovery

        return recovery.run(args.scheme, args.epochs, args.json)
    if args.command == "accuracy":
        from bench import accuracy

        return accuracy.run(
            _available(args.models or JUDGED), args.scheme, not args.no_rivals, args.calibrations, args.json
        )
    if args.command == "scaling":
        from bench import scaling

        return scaling.run(args.json)
    if args.command == "exactness":
        from bench import exactness

        return exactness.run(_available(args.models), args.recipe, args.examples, args.json)
    if args.command == "compile":
        from bench import compile as compiling

        return compiling.run(_available(args.models or TIMED), args.recipe, args.repeats, args.json)
    from bench import size

    return size.run(_available(args.models or TIMED), args.recipe, args.json)


if __name__ == "__main__":
    sys.exit(main())
