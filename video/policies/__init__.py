"""What decides whether, when and how often an item runs. None of it sleeps or reads a clock."""
