"""The configuration: one TOML file, one typed tree (tree), how it is read and explained (load), objects it
names (plugins); environment variables (environment)."""
