"""Storage formats: block logs, manifests, catalogs, chunks, rejects. Files only; no engine."""
