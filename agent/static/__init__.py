"""What the static gate reads: Python by its syntax tree, C++ as the preprocessor leaves it, and what the built object asks of the system."""
