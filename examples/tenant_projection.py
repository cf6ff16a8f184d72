"""A projection for each tenant, after the checkpoint's own embedding; the request says whose.

rtp-llm serve CHECKPOINT --custom_module examples/tenant_projection.py:TenantProjection
curl http://localhost:8088/v1/embeddings -d '{"input": ["a text"], "extra": {"tenant": "acme"}}'
"""

from typing import Any

import numpy as np

from rtp_llm.custom import CustomRequest, CustomSource


class TenantProjection:
    """tenants.npz of the checkpoint has a matrix [dimension, columns of the embedding] under each tenant's name."""

    reads = "embeddings"

    def __init__(self, source: CustomSource) -> None:
        with np.load(source.folder / "tenants.npz") as file:
            self.matrices = dict(file)
        sizes = {len(matrix) for matrix in self.matrices.values()}
        if len(sizes) != 1:
            raise ValueError(f"tenants.npz has matrices of {sorted(sizes)} rows, they must be of one size")
        self.dimension = sizes.pop()

    def __call__(self, request: CustomRequest) -> Any:
        tenant = str(request.extra.get("tenant"))
        if tenant not in self.matrices:
            raise ValueError(f"tenant: {tenant!r} is not one of {', '.join(sorted(self.matrices))}")
        # [n, columns] -> [n, dimension]
        return request.embeddings @ self.matrices[tenant].T
