"""Processors family: batches of one kind of video work, for users."""
