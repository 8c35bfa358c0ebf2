"""What surrounds the mathematics: processes, memory, compilation, CUDA graphs, and files that are written whole."""
