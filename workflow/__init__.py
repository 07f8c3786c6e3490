"""The pipeline and the data contract."""
