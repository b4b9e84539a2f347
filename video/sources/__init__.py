"""Sources family: ways to turn what a user names into a local file. One file a source."""
