"""The pipeline and the data contract."""

from workflow import environment  # noqa: F401  (before anything imports TensorFlow or Dask)
