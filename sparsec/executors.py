"""Where calibrated layers are solved: threads of this process, or any `concurrent.futures.Executor`, Dask's included."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sparsec.codegen.machine import cpu_count
from sparsec.errors import CalibrationError

__all__ = ["Workers", "open_workers"]

_DASK = "dask://"
_CONNECT_S = 10


@dataclass(frozen=True)
class Workers:
    """An executor and how many tasks it works on at once."""

    executor: Executor
    count: int


@contextmanager
def open_workers(where: Executor | str | None = None, jobs: int | None = None) -> Iterator[Workers]:
    """The workers that `where` names, for the length of the block.

    Args:
        where: None: threads of this process; `dask://host:port`: the workers of a Dask scheduler (package `distributed`, the
            extra `dask`; the workers need sparsec too); or an executor, which stays open. Layers and results are pickled where
            the executor does so.
        jobs: threads of this process, or tasks at once of an executor that is given; None: one per core (for Dask: one per
            thread of its workers).

    Raises:
        CalibrationError: the address is none, `distributed` is not installed, no scheduler answers or it has no workers.
    """
    cores = jobs or cpu_count()
    if where is None:
        with ThreadPoolExecutor(cores) as threads:
            yield Workers(threads, cores)
    elif isinstance(where, Executor):
        yield Workers(where, cores)
    else:
        with _dask(where, jobs) as workers:
            yield workers


@contextmanager
def _dask(where: str, jobs: int | None) -> Iterator[Workers]:
    if not where.startswith(_DASK) or not where.removeprefix(_DASK).rpartition(":")[2].isdigit():
        raise CalibrationError(f"executor '{where}': an address is dask://host:port, as in dask://localhost:8786")
    try:
        distributed: Any = import_module("distributed")  # it has no types
    except ImportError as error:
        raise CalibrationError(
            f"executor '{where}': the package distributed is not installed; pip install 'sparsec[dask]'"
        ) from error
    try:
        client = distributed.Client(f"tcp://{where.removeprefix(_DASK)}", timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"executor '{where}': no Dask scheduler answers there within {_CONNECT_S} s ({error}); start one with "
            "`dask scheduler` and workers with `dask worker`"
        ) from error
    with client:
        threads = sum(client.ncores().values())
        if not threads:
            raise CalibrationError(f"executor '{where}': the scheduler has no workers; start some with `dask worker`")
        with client.get_executor(pure=False) as executor:
            yield Workers(executor, jobs or threads)
