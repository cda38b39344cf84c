"""The benchmark harness: its arithmetic, its errors, and one real measurement."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from bench import contests, kernels, quiet
from bench.__main__ import main
from bench.contests import Bar, Candidate, Contest, Product, of
from bench.environments import FAMILIES, PINS, Command, NotSetUpError, worker_command
from bench.interleave import CannotError, Series, Worker, WorkerError, interleave, speedup
from bench.models import ENTRIES, HEADERS, alone, compare, entry_of, ours, recipe_of, row
from bench.operators import slow_relax
from bench.output import markdown
from bench.results import absent_text, judge
from bench.setup import SetupError, _find_python
from bench.share import Roof, kept
from bench.size import code_bytes
from bench.zoo import MissingData, get
from sparsec.codegen.machine import cpu_count

OURS = Candidate("sparsec", "int8")
FAST, SLOW, ABSENT = of("ggml", "q4_0", "q4_K", "q2_K")

# A worker without libraries: variant "missing" it has not got, "broken" fails, "mortal" dies at the first run.
FAKE = """
import sys
from bench.rivals.protocol import CannotError, Prepared, serve
def prepare(job):
    print("noise")
    if job["variant"] == "missing":
        raise CannotError("no such type")
    if job["variant"] == "broken":
        raise ValueError("bad shape")
    done = []
    def times(n):
        if job["variant"] == "mortal" and done:
            sys.exit("out of luck")
        done.append(n)
        return [1000 * job["us"] * job["layers"]] * n
    return Prepared(times=times, layers=job["layers"], stored=7, note="as told")
serve(prepare)
"""


def fake() -> Worker:
    return Worker(Command([sys.executable, "-c", FAKE]))


def job(variant: str = "good", layers: int = 4, us: int = 10) -> dict[str, object]:
    return {"variant": variant, "layers": layers, "us": us}


def series(*rounds: float, stored: int = 0) -> Series:
    return Series(rounds, stored)


def test_speedup_pairs_the_rounds() -> None:
    # the machine slowed down threefold in the last rounds: each round's ratio is still 2
    times = {FAST: series(2.0, 2.0, 6.0, 6.0), OURS: series(1.0, 1.0, 3.0, 3.0)}
    assert speedup(times, OURS, FAST) == 2.0
    assert times[OURS].median == 2.0
    assert series(5.0, 5.0, 5.0, 5.0).spread == 0.0
    assert str(OURS) == "sparsec int8"


def test_worker_times_a_layer_and_takes_another_job() -> None:
    with fake() as worker:
        assert worker.prepare(job()) >= 0
        assert (worker.layers, worker.stored, worker.note) == (4, 7, "as told")
        assert worker.time(3) == [10.0, 10.0, 10.0]
        worker.prepare(job(layers=1, us=25))
        assert worker.time(2) == [25.0, 25.0]


def test_worker_says_what_it_cannot_do_and_goes_on() -> None:
    with fake() as worker:
        with pytest.raises(WorkerError, match="run before prepare"):
            worker.time(1)
        with pytest.raises(CannotError, match="no such type"):
            worker.prepare(job("missing"))
        with pytest.raises(WorkerError, match="ValueError: bad shape"):
            worker.prepare(job("broken"))
        worker.prepare(job())
        assert worker.time(1) == [10.0]


def test_interleave_keeps_the_living() -> None:
    with fake() as good, fake() as mortal:
        good.prepare(job())
        mortal.prepare(job("mortal"))
        times, errors = interleave({"good": good, "mortal": mortal}, rounds=4, round_s=0.001)
    assert times["good"].rounds == (10.0,) * 4
    assert times["good"].stored == 7
    assert list(times) == ["good"]
    assert "out of luck" in errors["mortal"]


def test_a_worker_that_does_not_start_says_why() -> None:
    with (
        Worker(Command([sys.executable, "-c", "import no_module"])) as worker,
        pytest.raises(WorkerError, match="no_module"),
    ):
        worker.prepare(job())


def test_openblas_worker_measures() -> None:
    with Worker(worker_command("openblas", 1)) as worker:
        layer = {"kind": "layers", "variant": "fp32", "m": 3, "n": 17, "k": 29, "layers": 5, "threads": 1}
        try:
            worker.prepare(layer)
        except CannotError as reason:
            pytest.skip(str(reason))
        assert (worker.layers, worker.stored) == (5, 4 * 17 * 29)
        assert min(worker.time(20)) > 0


def test_a_rival_that_is_not_set_up_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_BENCH", str(tmp_path))
    with pytest.raises(NotSetUpError, match=r"^not set up: python -m bench setup ort$"):
        worker_command("ort", 1)
    (tmp_path / "ort.failed").write_text("no network\n")
    with pytest.raises(NotSetUpError, match=r"not set up \(no network\)"):
        worker_command("ort", 1)
    assert worker_command("openblas", 3).environment["OPENBLAS_NUM_THREADS"] == "3"


def test_setup_lists_the_pythons_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_BENCH_PYTHON", "/no/such/python")
    with pytest.raises(SetupError, match=r"needs Python 2\.9; tried /no/such/python, python2\.9"):
        _find_python("2.9")
    assert _find_python("") == sys.executable


def test_every_environment_is_pinned() -> None:
    for family in FAMILIES.values():
        assert (PINS / f"{family.name}.py").is_file()
        if family.own:
            pins = (PINS / f"{family.name}.txt").read_text().split()
            assert pins
            assert all(pin.count("==") == 1 for pin in pins)


def test_load_of_others_leaves_our_processes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(busy: int, ours: int) -> None:
        (tmp_path / "stat").write_text(f"cpu  {busy} 0 0 500 0 0 0 0 0 0\n")
        (tmp_path / "12").mkdir(exist_ok=True)
        fields = " ".join(["S", "1", "12", "0", "0", "0", "0", "0", "0", "0", "0", str(ours), "0", "0"])
        (tmp_path / "12" / "stat").write_text(f"12 (a) name) {fields}\n")

    write(1000, 100)
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(quiet.os, "sysconf", lambda name: 100)
    watch = quiet.Watch([12], tmp_path)
    write(1500, 300)  # 5 s busy, 2 s of them ours, in 2 s
    assert watch.other_load() == 1.5


def test_cores_of_a_host_that_shares_them(monkeypatch: pytest.MonkeyPatch) -> None:
    busy: set[int] = set()  # cores that lie with another one on one of the host's, when both are used

    def rates(cores: list[int], seconds: float) -> list[float]:
        return [0.6 if core in busy and busy <= set(cores) else 1.0 for core in cores]

    monkeypatch.setattr(quiet, "core_rates", rates)
    monkeypatch.setattr(quiet.os, "sched_getaffinity", lambda pid: {3, 1, 4, 5}, raising=False)
    four, one = quiet.Cores(4), quiet.Cores(1)
    assert four.at_once() == 4.0
    busy |= {1, 5}
    assert four.at_once() == pytest.approx(3.2)
    assert quiet.Cores(4).at_once() == pytest.approx(3.2)  # each is asked alone first
    assert one.at_once() == 1.0


def test_the_fastest_core_of_a_host_that_shares_them(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = {1: 1.0, 3: 1.0, 4: 1.0}
    monkeypatch.setattr(quiet, "core_rates", lambda cores, seconds: [speed[core] for core in cores])
    monkeypatch.setattr(quiet.os, "sched_getaffinity", lambda pid: set(speed), raising=False)
    cores = quiet.Cores(1)
    speed |= {1: 0.6, 3: 0.8}
    assert cores.best() == (4, 1.0)
    speed[4] = 0.7
    assert cores.best() == (3, pytest.approx(0.8))


def test_one_thread_runs_where_it_is_put() -> None:
    core = max(os.sched_getaffinity(0))
    with fake() as worker:
        worker.prepare(job())
        worker.move_to(core)
        assert {core} == os.sched_getaffinity(worker.group)
        assert worker.time(1) == [10.0]
    worker.move_to(core)  # of a process that has ended: nothing to do


def test_cores_of_this_machine() -> None:
    count = min(2, cpu_count())
    cores = quiet.Cores(count)
    assert 0 < cores.at_once() <= count


# --- what is measured, and how it is judged ---


@pytest.mark.parametrize("contest", contests.CONTESTS, ids=lambda c: str(c.product))
def test_cold_runs_rotate_over_enough(contest: Contest) -> None:
    for candidate in (*contest.rivals, *(Candidate("sparsec", scheme) for scheme in contest.schemes)):
        count = contests.layers(contest.product, candidate, "cold")
        stored = count * contest.product.n * contest.product.k * contests.bits(candidate) / 8
        assert stored >= 0.999 * contests.COLD_BYTES
        assert contests.layers(contest.product, candidate, "hot") in (1, 8)


def test_bits_of_sparse_schemes() -> None:
    assert contests.bits(Candidate("sparsec", "s75")) == 8
    assert contests.bits(Candidate("sparsec", "s16x1@75-cb4-g32")) == 1
    assert contests.bits(Candidate("ggml", "q4_K-repacked")) == 4


def test_rows_without_a_bar_meet_their_peers() -> None:
    contest = Contest(Product(8, 8), {"a": (Bar(2.0, (FAST,), "cold", "all"),)}, {"a": (SLOW,)}, ("hot", "cold"))
    assert contest.rivals == (FAST, SLOW)
    assert [b.factor for b in contest.comparisons("a", "cold", 4)] == [2.0]
    for state, threads in (("cold", 1), ("hot", 4)):
        (bar,) = contest.comparisons("a", state, threads)  # type: ignore[arg-type]
        assert (bar.factor, bar.rivals) == (0, (SLOW,))


def judged(bar: Bar, times: Mapping[Candidate, Series], share: float | None = None) -> tuple[object, object, object]:
    result = judge(bar, OURS, times, share)
    return result["rival"], result["speedup"], result["met"]


def test_judged_against_the_fastest_that_was_timed() -> None:
    times = {OURS: series(*[4.0] * 4), SLOW: series(*[12.0] * 4), FAST: series(*[8.0] * 4)}
    rivals = (SLOW, ABSENT, FAST)
    assert judged(Bar(2.0, rivals), times) == ("ggml q4_0", 2.0, True)
    assert judged(Bar(2.1, rivals), times) == ("ggml q4_0", 2.0, False)
    assert judged(Bar(0, rivals), times) == ("ggml q4_0", 2.0, None)
    assert judged(Bar(1.0, (ABSENT,)), times) == (None, None, None)
    assert judge(Bar(2.0, rivals), OURS, times)["not_timed"] == ["ggml q2_K"]
    roof = Bar(2.0, rivals, memory_share=0.85)
    assert [judged(roof, times, share)[2] for share in (0.9, 0.8, None)] == [True, False, None]


def _rate(one: float, together: float) -> dict[str, float]:
    return {"one": one, "all": together}


ROOF = Roof.of(
    {
        "roof": {
            "threads": 4,
            "levels": [
                {"name": "L2", "size": 1_000_000, "read": _rate(100e9, 400e9)},
                {"name": "memory", "size": 0, "read": _rate(10e9, 30e9)},
            ],
            "fma": _rate(100e9, 400e9),
            "int8": _rate(200e9, 800e9),
        }
    }
)


def test_roof_is_the_slower_of_memory_and_arithmetic() -> None:
    product = Product(1000, 1000)  # 2 million operations
    times = series(*[100.0] * 4, stored=500_000)
    # from memory with one thread 50 us, with all 16.7; from four times 1 MB of L2 1.25; arithmetic: int8 10 and 2.5
    assert ROOF.share(product, "cb4-g32", times, 300, 1) == pytest.approx(0.5)
    assert ROOF.share(product, "cb4-g32", times, 300, 4) == pytest.approx(0.5 / 3)
    assert ROOF.share(product, "cb4-g32", times, 8, 4) == pytest.approx(0.025)
    assert ROOF.share(product, "fp32", times, 1, 1) == pytest.approx(0.2)
    assert ROOF.share(product, "s75", times, 1, 1) == pytest.approx(0.05)
    assert ROOF.memory_share(times, 1) == pytest.approx(0.5)
    assert [kept(s) for s in ("s16x1@50-cb4-g32", "s2:4-int8", "int8", "s2x1@90")] == [0.5, 0.5, 1, pytest.approx(0.1)]


def test_kernel_rows_fit_their_headers() -> None:
    contest = Contest(Product(64, 32), {"int8": (Bar(1.5, (FAST,)),)}, {"int8": (FAST,)})
    times = {OURS: series(*[2.0] * 4, stored=4000), FAST: series(*[4.0] * 4)}
    (result,) = kernels.compare(contest, "int8", "cold", 1, times, ROOF)
    assert result["memory_share"] == pytest.approx(0.2)
    assert result["roof_share"] == pytest.approx(0.2)
    (result,) = kernels.compare(contest, "int8", "hot", 1, times, None)
    cells = ["64x32", "int8", "hot", "1", "2.0", "0", "2.0", "-", "ggml q4_0", "4.0", "2.00", "1.5", "yes", "-"]
    assert kernels.row(result) == cells
    assert kernels.row({**result, "threads": 4, "cores": 3.68})[-1] == "3.7"
    missing = kernels.row({"product": "64x32", "scheme": "vq2d4", "missing": "not in the project yet"})
    assert len(missing) == len(kernels.HEADERS)


def test_sweep_divides_by_what_is_stored() -> None:
    first = series(*[100.0] * 4)
    exact = kernels.proportion(Product(8, 8), "s90", 90, 1, series(*[20.0] * 4), first)
    flat = kernels.proportion(Product(8, 8), "s90", 90, 1, first, first)
    assert (exact["relative"], exact["met"]) == (pytest.approx(1), True)
    assert (flat["relative"], flat["met"]) == (pytest.approx(5), False)
    assert len(kernels.sweep_row(flat)) == len(kernels.SWEEP_HEADERS)


def test_model_entries_compile_what_they_say() -> None:
    from sparsec.formats import Scheme
    from sparsec.recipe import load_recipe

    for name, entry in ENTRIES.items():
        for scheme in entry.schemes:
            weights, _, activations = scheme.partition(" x ")
            assert str(Scheme.parse(weights)) == weights
            recipe = load_recipe(recipe_of(entry.rule, scheme))
            assert [r.scheme for r in recipe.rules] == ([] if scheme == "fp32" else [weights])
            assert not activations or [r.activations for r in recipe.rules] == [activations]
        for bars in entry.schemes.values():
            for bar in bars:
                assert set(bar.rivals) <= {*entry.rivals, *(Candidate("sparsec", s) for s in entry.schemes)}, name
    assert list(entry_of("kws", ["int8"]).schemes) == ["fp32", "int8"]


def test_model_row_fits_its_headers() -> None:
    result = judge(Bar(1.5, (FAST,)), OURS, {OURS: series(*[2000.0] * 4), FAST: series(*[4000.0] * 4)})
    cells = row({"model": "m", "scheme": "int8", "threads": 4, "scaling": 2.5, "cores": 3.68, **result})
    assert cells == ["m", "int8", "4", "2.00", "0", "ggml q4_0", "4.00", "2.00", "1.5", "yes", "2.50", "3.7"]
    assert len(cells) == len(HEADERS)


def test_speedup_over_one_thread_is_of_the_same_rounds() -> None:
    entry = entry_of("kws", ["int8"])
    times = {ours("int8"): series(10.0, 40.0, 10.0, 10.0), alone("int8"): series(30.0, 120.0, 30.0, 30.0)}
    assert [r["scaling"] for r in compare("kws", entry, "int8", 4, times)] == [pytest.approx(3)]
    del times[alone("int8")]
    assert [r["scaling"] for r in compare("kws", entry, "int8", 1, times)] == [None]


def test_pruning_spares_first_and_depthwise_convolutions() -> None:
    import torch

    from bench.model_files import prune

    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 20, 3), torch.nn.Linear(20, 5)
    )
    prune(module, "s90-block4")
    zeros = [float((m.weight == 0).float().mean()) for m in module]
    assert zeros == [0, 0, pytest.approx(0.9), 0]
    kept = (module[2].weight != 0).movedim(1, -1).reshape(-1, 4)
    assert set(kept.sum(1).tolist()) == {0, 4}
    linear = torch.nn.Sequential(torch.nn.Linear(40, 10))
    largest = linear[0].weight.abs().max()
    prune(linear, "s80")
    assert int((linear[0].weight != 0).sum()) == 80
    assert linear[0].weight.abs().max() == largest


def test_repeated_layers_have_weights_of_their_own(tmp_path: Path) -> None:
    from bench.layers import compiled_layer, layer_job, repeated, stored_bytes
    from sparsec.codegen.bundle import compile_program
    from sparsec.runtime import Session

    program = compiled_layer(Product(24, 40, 2), "int8")
    compiled = compile_program(repeated(program, 3))
    assert compiled.plan.weights_bytes >= 3 * stored_bytes(program)
    with layer_job(program, 3, 1) as made, Session(made["source"], made["weights"]) as session:
        rng = np.random.default_rng()
        x = [rng.standard_normal((2, 40), dtype=np.float32) for _ in range(3)]
        y = list(session.run(x).values())
        swapped = list(session.run([x[2], x[0], x[1]]).values())
    assert [a.shape for a in y] == [(2, 24)] * 3
    for mine, other in zip(y, [swapped[1], swapped[2], swapped[0]], strict=True):
        np.testing.assert_array_equal(mine, other)
    weight = np.random.default_rng(1).standard_normal((40, 24), dtype=np.float32)  # as bench.layers draws it
    np.testing.assert_allclose(y[1], x[1] @ weight, atol=0.3)


# --- output ---


def test_absent_rivals_are_grouped_by_reason() -> None:
    text = absent_text({"b": "no network", "c": "K is odd", "a": "no network"})
    assert text == "\na; b: no network\n\nc: K is odd\n"
    assert absent_text({}) == ""


def test_markdown_is_aligned_and_escaped() -> None:
    lines = markdown(("name", "ms"), [["a|b", "1.5"], ["longer name", "10.25"]]).splitlines()
    assert lines[2] == "| a\\|b        |   1.5 |"
    assert len({len(line) for line in lines}) == 1
    assert lines[1].endswith(":|")


def test_code_bytes_counts_executable_sections(tmp_path: Path) -> None:
    sections = [(0, 0, 0), (1, 6, 100), (1, 2, 7), (8, 6, 50), (1, 6, 11)]  # type, flags, bytes
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 40, 64)
    struct.pack_into("<HH", header, 58, 64, len(sections))
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", 0, kind, flags, 0, 0, size, 0, 0, 0, 0) for kind, flags, size in sections
    )
    path = tmp_path / "code.o"
    path.write_bytes(bytes(header) + table)
    assert code_bytes(path) == 111
    path.write_bytes(b"not an object")
    with pytest.raises(ValueError, match=r"code\.o is not"):
        code_bytes(path)


def test_steps_from_relax_above_their_share_are_flagged() -> None:
    steps = [{"family": family, "share": share} for family, share in (("gemm", 0.8), ("relax", 0.11), ("relax", 0.09))]
    assert slow_relax(steps) == [steps[1]]


def test_unknown_model_names_the_zoo() -> None:
    with pytest.raises(SystemExit, match=r"'resnet9' is not in the zoo; it has: .*resnet8"):
        main(["models", "resnet9"])


def test_kernels_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_BENCH", str(tmp_path))
    rivals = (*of("openblas", "fp32"), *of("ggml", "q4_0"))
    schemes = {"int8": (Bar(1.0, rivals),), "nonsense8": ()}
    contest = Contest(Product(48, 32), schemes, dict.fromkeys(schemes, rivals))
    monkeypatch.setattr(kernels, "CONTESTS", (contest,))
    monkeypatch.setattr(contests, "_BITS", {**contests._BITS, "nonsense8": 8})
    path = tmp_path / "result.json"
    assert main(["kernels", "--only", "48x32", "--threads", "1", "--rounds", "4", "--json", str(path)]) == 0
    ours, missing = sorted(json.loads(path.read_text())["results"], key=lambda r: "missing" in r)
    assert ours["us"] > 0
    assert len(ours["rounds_us"]) == 4
    assert missing["missing"] == "not in the project yet"
    printed = capsys.readouterr().out
    assert "ggml: not set up: python -m bench setup ggml" in printed


@pytest.mark.slow
def test_models_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        get("kws")
    except MissingData as missing:
        pytest.skip(str(missing))
    monkeypatch.setenv("SPARSEC_BENCH", str(tmp_path))
    path = tmp_path / "result.json"
    assert main(["models", "kws", "--threads", "1", "--rounds", "4", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    (result,) = found["results"]
    assert (result["scheme"], result["rival"], result["not_timed"]) == ("fp32", None, ["ort fp32"])
    assert result["us"] > 0
    assert [(r["model"], r["steps"], r["largest"], r["flagged"]) for r in found["relax"]] == [("kws", 0, None, False)]
    printed = capsys.readouterr().out
    assert "| kws   | fp32   |       1 |" in printed
    assert "ort: not set up" in printed


@pytest.mark.slow
def test_operators_command_covers_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        get("kws")
    except MissingData as missing:
        pytest.skip(str(missing))
    path = tmp_path / "steps.json"
    assert main(["operators", "kws", "--rounds", "3", "--json", str(path)]) == 0
    steps = json.loads(path.read_text())["steps"]
    assert sum(s["share"] for s in steps) == pytest.approx(1)
    assert sorted(s["step"] for s in steps) == list(range(len(steps)))
    assert "depthwise" in capsys.readouterr().out


@pytest.mark.slow
def test_compile_command_times_cold_and_warm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        get("kws")
    except MissingData as missing:
        pytest.skip(str(missing))
    arguments = ["compile", "kws", "--recipe", "int8", "--repeats", "2", "--json", str(tmp_path / "c.json")]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "c.json").read_text())["results"]
    assert [row["recipe"] for row in rows] == [None, "int8"]
    assert all(row["warm_processor_s"] > 0 and len(row["warm_all_s"]) == 2 for row in rows)
    assert "| kws   | int8" in capsys.readouterr().out
