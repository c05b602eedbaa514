"""What tools/benchmark.py measures, one module a question. Imported lazily: each imports torch."""
