"""Backends family: engines that run calls. One file an engine; `base` says what an engine is."""
