"""Media family: one noun a file, all on PyAV. Files here import only floors 0 and 1 and each other."""
