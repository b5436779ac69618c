"""What files contain, each format in one module; read and written, and nothing decided."""
