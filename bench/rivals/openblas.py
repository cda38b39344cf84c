"""OpenBLAS through numpy: fp32."""

from __future__ import annotations

import numpy as np

from bench.rivals.protocol import CannotError, Job, Prepared, serve


def prepare(job: Job) -> Prepared:
    """variant: fp32. The process must be started with OPENBLAS_NUM_THREADS = job["threads"]."""
    if job["kind"] != "layers" or job["variant"] != "fp32":
        raise CannotError(f"no {job['variant']} of kind {job['kind']}")
    if "openblas" not in np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]:
        raise CannotError("this numpy was built with another BLAS")
    rng = np.random.default_rng(0)
    layers = [
        (
            rng.standard_normal((job["m"], job["k"]), dtype=np.float32),
            rng.standard_normal((job["k"], job["n"]), dtype=np.float32),
            np.empty((job["m"], job["n"]), np.float32),
        )
        for _ in range(job["layers"])
    ]

    def run() -> None:
        for x, w, y in layers:
            np.matmul(x, w, out=y)

    return Prepared(run, layers=job["layers"], stored=4 * job["n"] * job["k"])


if __name__ == "__main__":
    serve(prepare)
