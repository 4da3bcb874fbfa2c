"""Record files: their schema, manifest, reader, writer, build and check."""
