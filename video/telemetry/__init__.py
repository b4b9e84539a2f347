"""Telemetry family: what people and machines see of a batch. One file a sink."""
