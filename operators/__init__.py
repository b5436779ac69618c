"""Steps of the dataflow: sources, decode, blocks, chunks."""
