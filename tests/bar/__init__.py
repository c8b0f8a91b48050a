"""The bar of the code base, as far as a tool can hold it; the rest is ruff, mypy and import-linter."""
