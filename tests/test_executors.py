"""Where layers are calibrated makes no difference to the bytes; what is wrong with an executor is said."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import sparsec
from sparsec import executors
from sparsec.cli import main
from sparsec.errors import CalibrationError
from sparsec.executors import open_workers
from tests.models import DIGITS_MLP, digits

RECIPE = {"version": 1, "rules": [{"scheme": "s2:4-cb3-c"}]}


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a scheduler with two workers, processes of their own."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address.replace("tcp://", "dask://")


def compressed(sequential: bool, **where: object) -> bytes:
    images = digits()[0][0][:64].reshape(-1, 1, 64)
    recipe = {**RECIPE, "calibrate": {"sequential": sequential}}
    made = sparsec.compress(DIGITS_MLP, recipe, calibration={"x": images}, input_shapes={"N": 1}, verify=False, **where)
    return made.to_bytes()


@pytest.mark.parametrize("sequential", [True, False])
def test_the_same_bytes_wherever_layers_are_solved(scheduler: str, sequential: bool) -> None:
    one = compressed(sequential, jobs=1)
    assert compressed(sequential, jobs=3) == one
    assert compressed(sequential, executor=scheduler) == one
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        assert compressed(sequential, executor=processes, jobs=2) == one
        assert processes.submit(int, "3").result() == 3, "an executor that was given stays open"


def test_the_command_line_takes_an_address(scheduler: str, tmp_path: object) -> None:
    images = digits()[0][0][:64].reshape(-1, 64)
    np.savez(f"{tmp_path}/x.npz", x=images)
    out = f"{tmp_path}/out.onnx"
    arguments = ["compress", str(DIGITS_MLP), out, "--recipe", "cb2-c", "--input-shapes", "N=1", "--no-verify"]
    assert main([*arguments, "--calibration", f"{tmp_path}/x.npz", "--executor", scheduler]) == 0


def test_workers_are_counted(scheduler: str) -> None:
    with open_workers(scheduler) as workers:
        assert workers.count == 2
    with open_workers(None, 3) as workers:
        assert workers.count == 3
        assert isinstance(workers.executor, ThreadPoolExecutor)


@pytest.mark.parametrize("address", ["dask", "dask://host", "tcp://localhost:8786", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(CalibrationError, match="an address is dask://host:port"), open_workers(address):
        pass


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(executors, "_CONNECT_S", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"dask://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(CalibrationError, match="no Dask scheduler answers there"), open_workers(address):
            pass


def test_a_scheduler_without_workers() -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        with pytest.raises(CalibrationError, match="has no workers"), open_workers(address):
            pass


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(CalibrationError, match=r"pip install 'sparsec\[dask\]'"), open_workers("dask://localhost:8786"):
        pass
