"""Runs batches of video jobs in parallel, on whichever engine suits them, and loses none of them."""
