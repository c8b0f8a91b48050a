"""Task packs: files loaded and validated, problems named with their remedy, mappings exported into packs."""
