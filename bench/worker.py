"""Our side of the benchmark's protocol: runs a compiled model through the C runtime, as `python -m bench.worker`."""

from __future__ import annotations

import ctypes

import numpy as np

from bench.rivals.protocol import CannotError, Job, Prepared, serve


def prepare(job: Job) -> Prepared:
    """A job of kind "compiled": `source` is a bundle, or a library that goes with the file `weights`; `layers` and `stored`
    are answered as given; `inputs` is an .npz, None for random numbers.

    Calls the runtime's C function with pointers made once, as a C program would: checking and allocating arrays is Python's
    cost, not the kernel's. (The rivals bind their inputs and outputs once where they can.)
    """
    if job["kind"] != "compiled":
        raise CannotError(f"no jobs of kind {job['kind']}")
    from sparsec.runtime import Session

    session = Session(job["source"], job["weights"], threads=job["threads"])
    rng = np.random.default_rng(0)
    if job["inputs"] is None:
        feed = {i.name: rng.standard_normal(i.shape, dtype=np.float32) for i in session.inputs}
    else:
        feed = {name: np.ascontiguousarray(array) for name, array in np.load(job["inputs"]).items()}
    session.run(feed)  # checks names, shapes and types
    ins = [feed[i.name] for i in session.inputs]
    outs = [np.empty(o.shape, o.dtype) for o in session.outputs]
    pointers = [(ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays)) for arrays in (ins, outs)]
    call, handle = session._lib.spc_session_run, session._handle

    def run(_keep: object = (session, ins, outs)) -> None:
        if call(handle, *pointers):
            raise RuntimeError("the program failed")

    return Prepared(run, layers=job["layers"], stored=job["stored"])


if __name__ == "__main__":
    serve(prepare)
